"""How long the axes of an array are when some nodes have other widths."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from alignment.labels import shared
from alignment.unification.algebra import Terms
from alignment.unification.terms import Case, Prod, Ref, Seq, Term, product, refs


class Extent(NamedTuple):
    """How long an axis was and is, and the nodes on it that have changed."""

    old: int
    new: int
    nodes: tuple[str, ...] = ()


class Sizes:
    """The new size of every term of a finished walk.

    A node that fills several intervals of an axis (the zero padding on both sides of a shortcut) keeps the share of each.

    Args:
        terms: the store of the walk.
        atoms: the atoms of the nodes that change, by name.
        widths: their new sizes.
    """

    def __init__(self, terms: Terms, atoms: Mapping[str, tuple[int, ...]], widths: Mapping[str, int]):
        self._terms = terms
        self._new: dict[int, int] = {}
        self._names = {a: name for name in widths for a in atoms[name]}
        for name, width in widths.items():
            old = [terms.size(Ref(a)) for a in atoms[name]]
            self._new |= dict(zip(atoms[name], shared(old, width), strict=True))

    def size(self, term: Term) -> int:
        """The new number of features on an axis with this term."""
        return self._size(self._terms.resolve(term))

    def axis(self, term: Term | None, old: int) -> int:
        """The new size of an axis; one without a term keeps its own."""
        return old if term is None else self.size(term)

    def offset(self, term: Term, place: int) -> int:
        """Where what began at `place` of an axis begins now. Raises ValueError inside something whose size changes."""
        return self._offset(self._terms.resolve(term), place)

    def factors(self, terms: Sequence[Term], old: Sequence[int]) -> list[int] | None:
        """The new sizes of the factors of some axes taken as one, by the old ones; None where they are no factors of it."""
        pieces = self._terms.factor(product([self._terms.resolve(t) for t in terms]), old)
        return None if pieces is None else [self.size(piece) for piece in pieces]

    def extent(self, term: Term | None, old: int) -> Extent:
        """Both sizes of an axis."""
        if term is None:
            return Extent(old, old)
        names = {self._names[ref.atom]: None for ref in refs(self._terms.resolve(term)) if ref.atom in self._names}
        return Extent(old, self.size(term), tuple(names))

    def extents(self, term: Term | None, old: int) -> list[Extent]:
        """Both sizes of an axis and of its factors."""
        known = None if term is None else self._terms.resolve(term)
        factors = known.factors if isinstance(known, Prod) else ()
        return [self.extent(known, old), *(self.extent(factor, self._terms.size(factor)) for factor in factors)]

    def _size(self, term: Term) -> int:
        match term:
            case Ref(atom):
                return self._new.get(atom, self._terms.size(term))
            case Seq(parts):
                return sum(map(self._size, parts))
            case Prod(factors):
                return math.prod(map(self._size, factors))
            case Case(_, options):
                sizes = {self._size(option) for option in options}
                if len(sizes) > 1:
                    raise ValueError(f"nodes that are stacked along one axis must have one width, got {sorted(sizes)}")
                return sizes.pop()

    def _offset(self, term: Term, place: int) -> int:
        old, new = self._terms.size(term), self._size(term)
        if place in (0, old):
            return new if place else 0
        if old == new and not self._changes(term):
            return place
        if isinstance(term, Seq):
            start = 0
            for part in term.parts:
                if place <= (n := self._terms.size(part)):
                    return start + self._offset(part, place)
                place, start = place - n, start + self._size(part)
        if isinstance(term, Prod):
            inner = Prod(term.factors[1:])
            if place % self._terms.size(inner) == 0:
                return self._offset(term.factors[0], place // self._terms.size(inner)) * self._size(inner)
        if isinstance(term, Case):
            return self._offset(term.options[0], place)
        raise ValueError(f"a slice begins at {place} of {old} units, inside a node whose width changes")

    def _changes(self, term: Term) -> bool:
        match term:
            case Ref(atom):
                return self._new.get(atom, self._terms.size(term)) != self._terms.size(term)
            case Seq(children) | Prod(children) | Case(_, children):
                return any(map(self._changes, children))
