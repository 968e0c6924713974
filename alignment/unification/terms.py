"""Terms: what the axes of the arrays in a network are made of, as `trace` sees them.

- `Ref`: an **atom**, a run of features about which nothing finer is known yet;
- `Seq`: terms laid end to end (a concatenation, a zero-padded shortcut, a fused projection);
- `Prod`: terms multiplied, first factor outermost (a flattened image is height x width x channel);
- `Case`: another term for each place along some other axis (queries, keys and values stacked on an axis of three).

Each occurrence of an atom has a **variance**: +1 where the axis carries the features themselves, -1 where it is contracted
with them and so transforms by the inverse transpose. An atom also has a `Group`: the transformations that have left the
function unchanged so far; it only ever shrinks. `alignment.unification.algebra` relates terms to each other.
"""

import enum
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


class Group(enum.Flag):
    """What may act on a node: always its permutations, together with the flags set here."""

    PERMUTATION = 0
    SCALE = enum.auto()  # positive factors per unit
    ORTHOGONAL = enum.auto()  # rotations and reflections
    LINEAR = SCALE | ORTHOGONAL  # any invertible matrix


@dataclass(frozen=True, slots=True)
class Ref:
    """An occurrence of an atom; `variance` is +1 (carries the features) or -1 (is contracted with them)."""

    atom: int
    variance: int = 1


@dataclass(frozen=True, slots=True)
class Seq:
    """Terms laid end to end."""

    parts: tuple["Term", ...]


@dataclass(frozen=True, slots=True)
class Prod:
    """A row-major product of terms, the first factor outermost. The empty product is an axis of size one."""

    factors: tuple["Term", ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A term that depends on the place along the axis of the atom `index`: one option for each, all of one size."""

    index: int
    options: tuple["Term", ...]


Term = Ref | Seq | Prod | Case
UNIT = Prod(())


def dual(term: Term) -> Term:
    """The term of an axis that is contracted with this one."""
    match term:
        case Ref(atom, variance):
            return Ref(atom, -variance)
        case Seq(parts):
            return Seq(tuple(map(dual, parts)))
        case Prod(factors):
            return Prod(tuple(map(dual, factors)))
        case Case(index, options):
            return Case(index, tuple(map(dual, options)))


def refs(term: Term) -> list[Ref]:
    """All occurrences of atoms in a resolved term, left to right."""
    match term:
        case Ref():
            return [term]
        case Seq(children) | Prod(children) | Case(_, children):
            return [ref for child in children for ref in refs(child)]


def product(factors: Sequence[Term]) -> Term:
    """The product of terms in normal form: no nested products, no units."""
    flat = [f for factor in factors for f in (factor.factors if isinstance(factor, Prod) else (factor,))]
    return flat[0] if len(flat) == 1 else Prod(tuple(flat))


def sequence(parts: Sequence[Term]) -> Term:
    """The sequence of terms in normal form: no nested sequences."""
    flat = [p for part in parts for p in (part.parts if isinstance(part, Seq) else (part,))]
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


@dataclass(frozen=True)
class Way:
    """One of the two ways in which an axis is made of smaller ones.

    Attributes:
        join: makes the axis.
        total: its size, of theirs.
        rest: what is left of a size without a part of it; None for what cannot be a part.
    """

    join: Callable[[Sequence[Term]], Term]
    total: Callable[[Iterable[int]], int]
    rest: Callable[[int, int], int | None]


END_TO_END = Way(sequence, sum, lambda whole, part: whole - part)
MULTIPLIED = Way(product, math.prod, lambda whole, part: None if whole % part else whole // part)


def at(term: Term, index: int, place: int, *, keep: bool = False) -> Term:
    """A resolved term at one place along the axis of the atom `index`, which is gone from it (or kept, another axis of it)."""
    match term:
        case Ref(atom):
            return UNIT if atom == index and not keep else term
        case Seq(parts):
            return sequence([at(p, index, place, keep=keep) for p in parts])
        case Prod(factors):
            return product([at(f, index, place, keep=keep) for f in factors])
        case Case(other, options):
            if other == index:
                return at(options[place], index, place, keep=keep)
            return Case(other, tuple(at(o, index, place, keep=keep) for o in options))


def depends_on(term: Term, atom: int) -> bool:
    """Whether an atom, or what is at its places, stands anywhere in a resolved term."""
    match term:
        case Ref():
            return term.atom == atom
        case Case(index, options):
            return index == atom or any(depends_on(o, atom) for o in options)
        case Seq(children) | Prod(children):
            return any(depends_on(child, atom) for child in children)


def outside_cases(term: Term, index: int) -> list[Ref]:
    """The occurrences of atoms that do not depend on the place along `index` yet."""
    match term:
        case Ref():
            return [term]
        case Case(other, _) if other == index:
            return []
        case Seq(children) | Prod(children) | Case(_, children):
            return [ref for child in children for ref in outside_cases(child, index)]
