"""Unification of axis terms: the small algebra beneath `trace`.

Tracing says which axes must transform together by unifying their terms, exactly as type inference unifies types: an atom
that meets a longer term is bound to it, two sequences with different cuts are cut at all of them. Pins, with their reasons,
and groups are kept by atom.

`together` records which axes stand in one expression. `alignment.unification.families` reads off it which atoms always have
another one at their side and may therefore be transformed differently at each of its places, as head_dim inside heads.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.unification.terms import (
    END_TO_END,
    MULTIPLIED,
    UNIT,
    Case,
    Group,
    Prod,
    Ref,
    Seq,
    Term,
    Way,
    at,
    depends_on,
    dual,
    outside_cases,
    product,
    refs,
    sequence,
)

SEPARATED = "its places are told apart by slices"
MOST_CASES = 64  # axes longer than this are sequences in time or space, not stacks of different things


@dataclass
class _Atom:
    size: int
    group: Group
    pins: dict[str, Any] = field(default_factory=dict)  # reason -> the source of the equation that gave it
    alone: bool = False  # never one node with another atom, though they stand together everywhere
    moved: bool = False  # its places are those of some axis in another order, or mixed: never an index
    bound: Term | None = None


class Terms:
    """A store of atoms and the operations that relate them.

    Attributes:
        where: the source of the equation at hand; goes with every reason for a pin.
        loops: the axes that a body of a loop is stacked along, which stand in all of its expressions unseen.
    """

    def __init__(self) -> None:
        self.where: Any = None
        self.loops: tuple[Term, ...] = ()
        self._atoms: list[_Atom] = []
        self._expressions: dict[tuple[Term, ...], None] = {}
        self._contracted: list[Term] = []

    def fresh(
        self, size: int, *, group: Group = Group.LINEAR, pin: str | None = None, alone: bool = False, moved: bool = False
    ) -> Term:
        """A new atom of `size` features, optionally pinned for a reason. Axes of size one need none."""
        if size == 1:
            return UNIT
        self._atoms.append(_Atom(size, group, {} if pin is None else {pin: self.where}, alone, moved))
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
            case Case(index, options):
                known, places = self.resolve(Ref(index)), tuple(self.resolve(o) for o in options)
                if len({self._undirected(place) for place in places}) == 1:
                    return places[0]
                return Case(known.atom if isinstance(known, Ref) else index, places)

    def _undirected(self, term: Term) -> Term:
        """A resolved term in which atoms that are their own duals (no scaling among their maps) have no variance."""
        match term:
            case Ref(atom):
                return term if Group.SCALE in self._atoms[atom].group else Ref(atom)
            case Seq(parts):
                return Seq(tuple(map(self._undirected, parts)))
            case Prod(factors):
                return Prod(tuple(map(self._undirected, factors)))
            case Case(index, options):
                return Case(index, tuple(map(self._undirected, options)))

    def size(self, term: Term) -> int:
        """Number of features on an axis with this term."""
        match term:
            case Ref(atom):
                return self._atoms[atom].size
            case Seq(parts):
                return sum(map(self.size, parts))
            case Prod(factors):
                return math.prod(map(self.size, factors))
            case Case(_, options):
                return self.size(options[0])

    def group(self, atom: int) -> Group:
        """The group of an unbound atom."""
        return self._atoms[atom].group

    def alone(self, atom: int) -> bool:
        """Whether an atom must stay a node of its own."""
        return self._atoms[atom].alone

    def moved(self, atom: int) -> bool:
        """Whether the places of an atom may stand in different orders on different axes."""
        return self._atoms[atom].moved

    def move(self, term: Term) -> None:
        """Note that the places of an axis are not where they were."""
        for ref in refs(self.resolve(term)):
            self._atoms[ref.atom].moved = True

    def pins(self, term: Term) -> dict[str, Any]:
        """Why parts of this term are held fixed, with the source of each reason; empty if all of it is free."""
        found: dict[str, Any] = {}
        for ref in refs(self.resolve(term)):
            found = self._atoms[ref.atom].pins | found
        return found

    def together(self, axes: Iterable[Term | None]) -> None:
        """Record that these axes stand in one expression."""
        self._expressions[(*self.loops, *(t for t in axes if t is not None))] = None

    def expressions(self) -> set[tuple[Term, ...]]:
        """Everything recorded by `together`, resolved."""
        return {tuple(map(self.resolve, axes)) for axes in self._expressions}

    def restrict(self, term: Term, group: Group) -> None:
        """Shrink the group of every atom of `term` to what `group` also allows."""
        for ref in refs(self.resolve(term)):
            self._atoms[ref.atom].group &= group

    def pin(self, term: Term, reason: str, where: Any = None) -> None:
        """Hold every atom of `term` fixed, for a reason given by the equation at hand or by that of `where`."""
        for ref in refs(self.resolve(term)):
            self._atoms[ref.atom].pins.setdefault(reason, where or self.where)

    def separate(self, axes: Sequence[Term | None], d: int, place: int) -> list[Term | None] | None:
        """The other axes of an array at one place along axis `d`, told apart from those at its other places.

        Every free atom beside a bare atom on axis `d` becomes a `Case` of it. None if axis `d` is not a bare atom, or free
        of atoms to tell apart.
        """
        index = self.resolve(axes[d] or UNIT)
        others = [None if t is None or k == d else self.resolve(t) for k, t in enumerate(axes)]
        if not isinstance(index, Ref) or self.moved(index.atom) or self.size(index) > MOST_CASES:
            return None
        if not set(self.pins(index)) <= {SEPARATED}:
            return None
        beside = {r.atom for t in others if t for r in outside_cases(t, index.atom)} - {index.atom}
        joint = [self._atoms[atom] for atom in beside if not self._atoms[atom].pins]
        if not joint and not any(isinstance(t, Case) or outside_cases(t, index.atom) != refs(t) for t in others if t):
            return None
        self.pin(index, SEPARATED)
        for atom in joint:
            options = [self.fresh(atom.size, group=atom.group, alone=atom.alone) for _ in range(self.size(index))]
            atom.bound = Case(index.atom, tuple(options))
        return [None if t is None else at(self.resolve(t), index.atom, place, keep=True) for t in others]

    def unify(self, a: Term, b: Term) -> None:
        """Demand that two axes of equal size transform alike. What cannot be expressed is pinned on both sides."""
        a, b = self.resolve(a), self.resolve(b)
        if a == b:
            return
        if isinstance(a, Ref):
            self._bind(a, b)
        elif isinstance(b, Ref):
            self._bind(b, a)
        elif isinstance(a, Case) or isinstance(b, Case):
            self._unify_cases(a, b)
        elif isinstance(a, Seq) and isinstance(b, Seq):
            self._unify_children(list(a.parts), list(b.parts), END_TO_END)
        elif isinstance(a, Prod) and isinstance(b, Prod):
            self._unify_children(list(a.factors), list(b.factors), MULTIPLIED)
        else:
            seq, prod = (a, b) if isinstance(a, Seq) else (b, a)
            assert isinstance(seq, Seq) and isinstance(prod, Prod)
            self.unify(seq, self._unroll(prod))

    def contract(self, a: Term, b: Term) -> None:
        """Demand that two axes can be summed over together: one transforms by the inverse transpose of the other."""
        self.unify(a, dual(b))
        self._contracted.append(a)

    def contracted(self) -> set[int]:
        """The atoms that were ever summed over in a product."""
        return {ref.atom for term in self._contracted for ref in refs(self.resolve(term))}

    def cut(self, term: Term, sizes: Sequence[int]) -> list[Term] | None:
        """Split an axis into consecutive pieces of the given sizes, or None where its structure forbids that."""
        term = self.resolve(term)
        if len(sizes) == 1:
            return [term]
        match term:
            case Ref():
                return self._refine(term, sizes, END_TO_END)
            case Seq(parts):
                return self._regroup(list(parts), sizes, END_TO_END)
            case Prod(factors) if factors:
                inner = self.size(Prod(factors[1:]))
                if all(n % inner == 0 for n in sizes):
                    outer = self.cut(factors[0], [n // inner for n in sizes])
                    return outer and [self.resolve(product([o, *factors[1:]])) for o in outer]
            case Case(index, options):
                return _cases(index, [self.cut(o, sizes) for o in options])
        return None

    def factor(self, term: Term, sizes: Sequence[int]) -> list[Term] | None:
        """Split an axis into factors of the given sizes (outermost first), or None where its structure forbids that."""
        term = self.resolve(term)
        wide = [n for n in sizes if n > 1]
        if len(wide) <= 1:
            return [term if n > 1 else UNIT for n in sizes]
        pieces: list[Term] | None = None
        if isinstance(term, Ref):
            pieces = self._refine(term, wide, MULTIPLIED)
        elif isinstance(term, Prod):
            pieces = self._regroup(list(term.factors), wide, MULTIPLIED)
        elif isinstance(term, Case):
            pieces = _cases(term.index, [self.factor(o, wide) for o in term.options])
        if pieces is None:
            return None
        remaining = iter(pieces)
        return [next(remaining) if n > 1 else UNIT for n in sizes]

    def _bind(self, ref: Ref, term: Term) -> None:
        if isinstance(term, Ref) and term.atom == ref.atom:  # met its own dual: g = g^-T
            self.restrict(ref, Group.ORTHOGONAL)
            return
        if isinstance(term, Case) and depends_on(term, ref.atom):  # met at one place and at all of them
            self._unify_cases(ref, term)
            return
        atom = self._atoms[ref.atom]
        atom.bound = term if ref.variance > 0 else dual(term)
        self.restrict(term, atom.group)
        for reason, where in atom.pins.items():
            self.pin(term, reason, where)
        for inner in refs(self.resolve(term)):
            self._atoms[inner.atom].alone |= atom.alone
            self._atoms[inner.atom].moved |= atom.moved

    def _refine(self, ref: Ref, sizes: Sequence[int], way: Way) -> list[Term]:
        """Replace an atom by new atoms of the given sizes, joined as a sequence or a product."""
        atom = self._atoms[ref.atom]
        pieces: list[Term] = []
        for n in sizes:
            piece = self.fresh(n, group=atom.group, alone=atom.alone, moved=atom.moved)
            for reason, where in atom.pins.items():
                self.pin(piece, reason, where)
            pieces.append(piece)
        atom.bound = way.join(pieces)
        return pieces if ref.variance > 0 else [dual(p) for p in pieces]

    def _unify_cases(self, a: Term, b: Term) -> None:
        """Unify place by place where both depend on the same axis, else all places with the other term."""
        if isinstance(a, Case) and isinstance(b, Case) and a.index == b.index:
            for x, y in zip(a.options, b.options, strict=True):
                self.unify(x, y)
            return
        case, other = (a, b) if isinstance(a, Case) else (b, a)
        assert isinstance(case, Case)
        for option in case.options:
            self.unify(option, other)

    def _unify_children(self, left: list[Term], right: list[Term], way: Way) -> None:
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
            pieces = self._parted(longer[0], big, small, way)
            if pieces is None:
                for term in whole:
                    self.pin(term, "axes of incompatible structure meet")
                    self.move(term)
                return
            longer[:1] = pieces

    def _regroup(self, children: list[Term], sizes: Sequence[int], way: Way) -> list[Term] | None:
        """Gather parts (or factors) into runs of the given sizes, splitting those that straddle a boundary."""
        out: list[Term] = []
        for wanted in sizes:
            run: list[Term] = []
            while children and (have := way.total(map(self.size, run))) < wanted:
                if (need := way.rest(wanted, have)) is None:
                    return None
                head = children.pop(0)
                if (n := self.size(head)) > need:
                    if (pieces := self._parted(head, n, need, way)) is None:
                        return None
                    head, tail = pieces
                    children.insert(0, tail)
                run.append(head)
            if way.total(map(self.size, run)) != wanted:
                return None
            out.append(way.join(run))
        return out

    def _parted(self, term: Term, size: int, part: int, way: Way) -> list[Term] | None:
        """A part of a term and the rest of it, or None where its structure forbids that."""
        rest = way.rest(size, part)
        if rest is None:
            return None
        return self.cut(term, [part, rest]) if way is END_TO_END else self.factor(term, [part, rest])

    def _unroll(self, prod: Prod) -> Term:
        """A product as copies of its inner factors laid end to end; its outermost factor is held fixed for that."""
        outer, inner = prod.factors[0], product(prod.factors[1:])
        self.pin(outer, "a product meets a sequence of segments")
        return sequence([inner] * self.size(outer))


def _cases(index: int, split: Sequence[list[Term] | None]) -> list[Term] | None:
    """The pieces of every option, as options of every piece."""
    if any(pieces is None for pieces in split):
        return None
    return [Case(index, options) for options in zip(*(pieces for pieces in split if pieces is not None), strict=True)]
