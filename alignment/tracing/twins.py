"""Which atoms are one node although they are several runs of features."""

from collections.abc import Iterable, Iterator, Mapping

from alignment.unification.algebra import Terms
from alignment.unification.families import Expression
from alignment.unification.terms import Prod, Ref, Seq, Term


def join_twins(
    every: Iterable[Expression], free: set[int], terms: Terms, beside: Mapping[int, set[int]]
) -> dict[int, tuple[int, ...]]:
    """Atoms that always stand in the same sequences, once each, are one node: both ends of a zero-padded shortcut.

    No operation tells such atoms apart, so their units may be exchanged with each other as well as among themselves.
    Returns, for each free atom, the tuple of atoms of its node.
    """
    contexts: dict[int, set] = {a: set() for a in free}
    for term in (t for expression in every for t in expression):
        for item in _sequences(term):
            if isinstance(item, Ref):
                if item.atom in free:
                    contexts[item.atom].add(item.atom)  # stands alone: a context of its own
                continue
            direct = [p for p in item.parts if isinstance(p, Ref) and p.atom in free]
            for ref in direct:
                once = sum(p.atom == ref.atom for p in direct) == 1
                contexts[ref.atom].add((item, ref.variance) if once else (item, ref.atom))
    twins: dict[tuple, list[int]] = {}
    for atom in sorted(free):
        own = atom if terms.alone(atom) else None
        around = frozenset(beside.get(atom, ()))
        twins.setdefault((frozenset(contexts[atom]), terms.group(atom), around, own), []).append(atom)
    return {atom: tuple(group) for group in twins.values() for atom in group}


def _sequences(term: Term) -> Iterator[Seq | Ref]:
    """Every sequence inside a term, and every atom that stands outside of one."""
    match term:
        case Seq(parts):
            yield term
            for part in parts:
                if not isinstance(part, Ref):
                    yield from _sequences(part)
        case Prod(factors):
            for factor in factors:
                yield from _sequences(factor)
        case Ref():
            yield term
