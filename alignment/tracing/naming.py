"""What nodes and fixed axes are called, and which side of a contraction carries the features."""

import re

from alignment.unification.families import cases_in
from alignment.unification.terms import Term, refs

Atoms = tuple[int, ...]


def signs_of(seen: list[list[Term]], axes: dict[str, list[Term]]) -> dict[int, int]:
    """The variance that means "carries the features": the one an atom has where it first appears in the data."""
    signs: dict[int, int] = {}
    for labels in [*seen, *axes.values()]:
        for term in labels:
            for ref in refs(term):
                signs.setdefault(ref.atom, ref.variance)
    return signs


def node_names(axes: dict[str, list[Term]], joined: dict[int, Atoms], signs: dict[int, int]) -> dict[Atoms, str]:
    """A name for each node: the module (or leaf) whose weight first produces it, made unique."""
    makers: dict[Atoms, str] = {}
    for rank, role in ((2, True), (0, True), (0, False)):  # weights, then vectors, then consumers
        for path, labels in axes.items():
            for ref in (r for term in labels if len(labels) >= rank for r in refs(term)):
                if ref.atom in joined and (ref.variance == signs[ref.atom]) == role:
                    makers.setdefault(joined[ref.atom], path)
    parents = [re.sub(r"/[^/]*$", "", path) for path in makers.values()]
    short = [p if parents.count(p) == 1 else path for p, path in zip(parents, makers.values(), strict=True)]
    total = {name: short.count(name) for name in short}
    used: dict[str, int] = {}
    names: dict[Atoms, str] = {}
    for node, name in zip(makers, short, strict=True):
        k = used[name] = used.get(name, 0) + 1
        names[node] = name if total[name] == 1 else f"{name}#{k}"
    return names


def fixed_names(axes: dict[str, list[Term]], free: set[int], index: dict[int, Atoms]) -> dict[Atoms, str]:
    """A name for each fixed axis that nodes are indexed by: the first leaf it is an axis of, and which."""
    named = {i for by in index.values() for i in by} - free
    cases = {case.index for labels in axes.values() for term in labels for case in cases_in(term)}
    names: dict[Atoms, str] = {}
    for path, labels in axes.items():
        for d, term in enumerate(labels):
            atoms = dict.fromkeys(ref.atom for ref in refs(term) if ref.atom in named | cases)
            here = [atom for atom in atoms if (atom,) not in names]
            names |= {(atom,): f"{path}[{d}]" + (f"#{k + 1}" if len(here) > 1 else "") for k, atom in enumerate(here)}
    return names
