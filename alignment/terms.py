"""Unification of axis terms: the small algebra beneath `trace`.

Every axis of every array in a network is described by a *term*:

- `Ref`: an **atom**, a run of features about which nothing finer is known yet;
- `Seq`: terms laid end to end (a concatenation, a zero-padded shortcut, a fused projection);
- `Prod`: terms multiplied, first factor outermost (a flattened image is height x width x channel).

Tracing says which axes must transform together by unifying their terms, exactly as type inference unifies types: an atom
that meets a longer term is bound to it, two sequences with different cuts are cut at all of them. Each occurrence of an
atom has a **variance**: +1 where the axis carries the features themselves, -1 where it is contracted with them and so
transforms by the inverse transpose. An atom also has a `Group` (the transformations that have left the function unchanged
so far; it only ever shrinks) and the reasons for which it is pinned, if any.
"""

import enum
import math
from collections.abc import Callable, Sequence
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


Term = Ref | Seq | Prod
Split = Callable[[Term, Sequence[int]], list[Term] | None]
Join = Callable[[Sequence[Term]], Term]
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


def refs(term: Term) -> list[Ref]:
    """All occurrences of atoms in a resolved term, left to right."""
    match term:
        case Ref():
            return [term]
        case Seq(children) | Prod(children):
            return [ref for child in children for ref in refs(child)]


def product(factors: Sequence[Term]) -> Term:
    """The product of terms in normal form: no nested products, no units."""
    flat = [f for factor in factors for f in (factor.factors if isinstance(factor, Prod) else (factor,))]
    return flat[0] if len(flat) == 1 else Prod(tuple(flat))


def sequence(parts: Sequence[Term]) -> Term:
    """The sequence of terms in normal form: no nested sequences."""
    flat = [p for part in parts for p in (part.parts if isinstance(part, Seq) else (part,))]
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


@dataclass
class _Atom:
    size: int
    group: Group
    pins: dict[str, None]  # an ordered set of reasons
    alone: bool = False  # never one node with another atom, though they stand together everywhere
    bound: Term | None = None


class Terms:
    """A store of atoms and the operations that relate them."""

    def __init__(self) -> None:
        self._atoms: list[_Atom] = []

    def fresh(self, size: int, *, group: Group = Group.LINEAR, pin: str | None = None, alone: bool = False) -> Term:
        """A new atom of `size` features, optionally pinned for a reason. Axes of size one need none."""
        if size == 1:
            return UNIT
        self._atoms.append(_Atom(size, group, {} if pin is None else {pin: None}, alone))
        return Ref(len(self._atoms) - 1)

    def resolve(self, term: Term) -> Term:
        """The term with every bound atom replaced, in normal form."""
        match term:
            case Ref(atom, variance):
                bound = self._atoms[atom].bound
                if bound is None:
                    return term
                resolved = self.resolve(bound)
                self._atoms[atom].bound = resolved  # path compression
                return resolved if variance > 0 else dual(resolved)
            case Seq(parts):
                return sequence([self.resolve(p) for p in parts])
            case Prod(factors):
                return product([self.resolve(f) for f in factors])

    def size(self, term: Term) -> int:
        """Number of features on an axis with this term."""
        match term:
            case Ref(atom):
                return self._atoms[atom].size
            case Seq(parts):
                return sum(map(self.size, parts))
            case Prod(factors):
                return math.prod(map(self.size, factors))

    def group(self, atom: int) -> Group:
        """The group of an unbound atom."""
        return self._atoms[atom].group

    def alone(self, atom: int) -> bool:
        """Whether an atom must stay a node of its own."""
        return self._atoms[atom].alone

    def pins(self, term: Term) -> tuple[str, ...]:
        """Why parts of this term are held fixed; empty if all of it is free."""
        return tuple(dict.fromkeys(p for ref in refs(self.resolve(term)) for p in self._atoms[ref.atom].pins))

    def restrict(self, term: Term, group: Group) -> None:
        """Shrink the group of every atom of `term` to what `group` also allows."""
        for ref in refs(self.resolve(term)):
            self._atoms[ref.atom].group &= group

    def pin(self, term: Term, reason: str) -> None:
        """Hold every atom of `term` fixed."""
        for ref in refs(self.resolve(term)):
            self._atoms[ref.atom].pins.setdefault(reason)

    def unify(self, a: Term, b: Term) -> None:
        """Demand that two axes of equal size transform alike. What cannot be expressed is pinned on both sides."""
        a, b = self.resolve(a), self.resolve(b)
        if a == b:
            return
        if isinstance(a, Ref):
            self._bind(a, b)
        elif isinstance(b, Ref):
            self._bind(b, a)
        elif isinstance(a, Seq) and isinstance(b, Seq):
            self._unify_children(list(a.parts), list(b.parts), self.cut)
        elif isinstance(a, Prod) and isinstance(b, Prod):
            self._unify_children(list(a.factors), list(b.factors), self.factor)
        else:
            seq, prod = (a, b) if isinstance(a, Seq) else (b, a)
            assert isinstance(seq, Seq) and isinstance(prod, Prod)
            self.unify(seq, self._unroll(prod))

    def cut(self, term: Term, sizes: Sequence[int]) -> list[Term] | None:
        """Split an axis into consecutive pieces of the given sizes, or None where its structure forbids that."""
        term = self.resolve(term)
        if len(sizes) == 1:
            return [term]
        match term:
            case Ref():
                return self._refine(term, sizes, sequence)
            case Seq(parts):
                return self._regroup(list(parts), sizes, self.cut, sequence)
            case Prod(factors) if factors:
                inner = self.size(Prod(factors[1:]))
                if all(n % inner == 0 for n in sizes):
                    outer = self.cut(factors[0], [n // inner for n in sizes])
                    return outer and [self.resolve(product([o, *factors[1:]])) for o in outer]
        return None

    def factor(self, term: Term, sizes: Sequence[int]) -> list[Term] | None:
        """Split an axis into factors of the given sizes (outermost first), or None where its structure forbids that."""
        term = self.resolve(term)
        wide = [n for n in sizes if n > 1]
        if len(wide) <= 1:
            return [term if n > 1 else UNIT for n in sizes]
        pieces: list[Term] | None = None
        if isinstance(term, Ref):
            pieces = self._refine(term, wide, product)
        elif isinstance(term, Prod):
            pieces = self._regroup(list(term.factors), wide, self.factor, product)
        if pieces is None:
            return None
        remaining = iter(pieces)
        return [next(remaining) if n > 1 else UNIT for n in sizes]

    def _bind(self, ref: Ref, term: Term) -> None:
        if isinstance(term, Ref) and term.atom == ref.atom:  # met its own dual: g = g^-T
            self.restrict(ref, Group.ORTHOGONAL)
            return
        atom = self._atoms[ref.atom]
        atom.bound = term if ref.variance > 0 else dual(term)
        self.restrict(term, atom.group)
        for reason in atom.pins:
            self.pin(term, reason)
        for inner in refs(self.resolve(term)):
            self._atoms[inner.atom].alone |= atom.alone

    def _refine(self, ref: Ref, sizes: Sequence[int], join: Join) -> list[Term]:
        """Replace an atom by new atoms of the given sizes, joined as a sequence or a product."""
        atom = self._atoms[ref.atom]
        pieces: list[Term] = []
        for n in sizes:
            piece = self.fresh(n, group=atom.group, alone=atom.alone)
            for reason in atom.pins:
                self.pin(piece, reason)
            pieces.append(piece)
        atom.bound = join(pieces)
        return pieces if ref.variance > 0 else [dual(p) for p in pieces]

    def _unify_children(self, left: list[Term], right: list[Term], split: Split) -> None:
        """Unify two lists of parts (or factors) from the front, splitting the larger head where they disagree."""
        whole = [*left, *right]
        while left and right:
            x, y = self.resolve(left[0]), self.resolve(right[0])
            n, m = self.size(x), self.size(y)
            if n == m:
                self.unify(x, y)
                del left[0], right[0]
                continue
            longer, big, small = (left, n, m) if n > m else (right, m, n)
            rest = big - small if split == self.cut else big // small
            fits = split == self.cut or big % small == 0
            pieces = split(longer[0], [small, rest]) if fits else None
            if pieces is None:
                for term in whole:
                    self.pin(term, "axes of incompatible structure meet")
                return
            longer[:1] = pieces

    def _regroup(self, children: list[Term], sizes: Sequence[int], split: Split, join: Join) -> list[Term] | None:
        """Gather parts (or factors) into runs of the given sizes, splitting those that straddle a boundary."""
        total = sum if split == self.cut else math.prod
        out: list[Term] = []
        for wanted in sizes:
            run: list[Term] = []
            while children and (have := total([self.size(c) for c in run])) < wanted:
                head = children.pop(0)
                need = wanted - have if split == self.cut else wanted // have
                n = self.size(head)
                if n > need:
                    rest = n - need if split == self.cut else n // need
                    pieces = split(head, [need, rest]) if split == self.cut or n % need == 0 else None
                    if pieces is None:
                        return None
                    head, tail = pieces
                    children.insert(0, tail)
                run.append(head)
            if total([self.size(c) for c in run]) != wanted:
                return None
            out.append(join(run))
        return out

    def _unroll(self, prod: Prod) -> Term:
        """A product as copies of its inner factors laid end to end; its outermost factor is held fixed for that."""
        outer, inner = prod.factors[0], product(prod.factors[1:])
        self.pin(outer, "a product meets a sequence of segments")
        return sequence([inner] * self.size(outer))
