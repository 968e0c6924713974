"""From unified terms to the graph: which atoms are one node, what it is called, how each axis is labelled, where to tap."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from alignment.graph import (
    AxisLabel,
    Fixed,
    Graph,
    GroupName,
    Interval,
    Node,
    NodeAxis,
    Part,
    Pinned,
    Product,
    Role,
    Segments,
    Tap,
)
from alignment.primitives import Value
from alignment.terms import Group, Prod, Ref, Seq, Term, Terms, refs

GROUP_NAMES: dict[Group, GroupName] = {
    Group.PERMUTATION: "permutation",
    Group.SCALE: "scale",
    Group.ORTHOGONAL: "orthogonal",
    Group.LINEAR: "linear",
}


@dataclass(frozen=True)
class Seen:
    """A value on the way from the inputs, and the equation that made it."""

    location: tuple[int, ...]
    output: int
    value: Value


def build_graph(
    terms: Terms, params: Mapping[str, Value], *, seen: Sequence[Seen], made: Sequence[Value], used: Sequence[str]
) -> Graph:
    """The graph of a finished walk.

    Args:
        terms: the store, everything unified.
        params: the variables by path.
        seen: the floating-point values that depend on the inputs, in the order of the network.
        made: every value, whether or not the inputs had a part in it.
        used: paths of the variables in the order in which the network reads them.
    """
    axes = {path: [_resolved(terms, t) for t in value.axes] for path, value in params.items()}
    met = [(s, [_resolved(terms, t) for t in s.value.axes]) for s in seen]
    moved = {ref.atom for _, labels in met for t in labels for ref in refs(t)}
    free = {a for labels in axes.values() for t in labels for a in (r.atom for r in refs(t)) if not terms.pins(Ref(a))}
    free &= moved  # a leaf that never meets the data has no symmetry worth the name

    every = [t for labels in axes.values() for t in labels] + [_resolved(terms, t) for v in made for t in v.axes]
    joined = _join_twins(every, free, terms)
    signs = _signs([labels for _, labels in met], axes)
    ordered = {path: axes[path] for path in [*used, *axes]}
    names = _names(ordered, joined, signs)
    label = _Labeller(terms, joined, names, signs)

    nodes, taps = _nodes_and_taps(terms, met, label)
    return Graph(
        nodes=nodes,
        axes={path: tuple(label(t) for t in labels) for path, labels in axes.items()},
        pinned=_pins(terms, axes, moved),
        taps=taps,
        shapes={path: value.shape for path, value in params.items()},
    )


def _nodes_and_taps(
    terms: Terms, met: list[tuple[Seen, list[Term]]], label: "_Labeller"
) -> tuple[dict[str, Node], dict[str, Tap]]:
    """The nodes in the order of the network, and for each the widest view of it, the last of its kind."""
    nodes: dict[str, Node] = {}
    taps: dict[str, tuple[int, Tap]] = {}
    for item, labels in met:
        for d, term in enumerate(labels):
            for name, intervals in _bare(label(term)):
                nodes.setdefault(name, label.node(name))
                samples = math.prod(item.value.shape) // item.value.shape[d]
                if samples >= taps.get(name, (0,))[0]:
                    taps[name] = samples, Tap(item.location, item.output, d, intervals)
    for name in label.atoms:  # those that only ever appear inside a product come last
        nodes.setdefault(name, label.node(name))
    return nodes, {name: tap for name, (_, tap) in taps.items()}


def _resolved(terms: Terms, term: Term | None) -> Term:
    return Prod(()) if term is None else terms.resolve(term)


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


def _join_twins(every: list[Term], free: set[int], terms: Terms) -> dict[int, tuple[int, ...]]:
    """Atoms that always stand in the same sequences, once each, are one node: both ends of a zero-padded shortcut.

    No operation tells such atoms apart, so their units may be exchanged with each other as well as among themselves.
    Returns, for each free atom, the tuple of atoms of its node.
    """
    contexts: dict[int, set] = {a: set() for a in free}
    for term in every:
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
        twins.setdefault((frozenset(contexts[atom]), terms.group(atom), own), []).append(atom)
    return {atom: tuple(group) for group in twins.values() for atom in group}


def _signs(seen: list[list[Term]], axes: dict[str, list[Term]]) -> dict[int, int]:
    """The variance that means "carries the features": the one an atom has where it first appears in the data."""
    signs: dict[int, int] = {}
    for labels in [*seen, *axes.values()]:
        for term in labels:
            for ref in refs(term):
                signs.setdefault(ref.atom, ref.variance)
    return signs


def _names(
    axes: dict[str, list[Term]], joined: dict[int, tuple[int, ...]], signs: dict[int, int]
) -> dict[tuple[int, ...], str]:
    """A name for each node: the module (or leaf) whose weight first produces it, made unique."""
    makers: dict[tuple[int, ...], str] = {}
    for rank, role in ((2, True), (0, True), (0, False)):  # weights, then vectors, then consumers
        for path, labels in axes.items():
            for ref in (r for term in labels if len(labels) >= rank for r in refs(term)):
                if ref.atom in joined and (ref.variance == signs[ref.atom]) == role:
                    makers.setdefault(joined[ref.atom], path)
    parents = [re.sub(r"/[^/]*$", "", path) for path in makers.values()]
    short = [p if parents.count(p) == 1 else path for p, path in zip(parents, makers.values(), strict=True)]
    total = {name: short.count(name) for name in short}
    used: dict[str, int] = {}
    names: dict[tuple[int, ...], str] = {}
    for node, name in zip(makers, short, strict=True):
        k = used[name] = used.get(name, 0) + 1
        names[node] = name if total[name] == 1 else f"{name}#{k}"
    return names


class _Labeller:
    """Turns resolved terms into the labels of the graph."""

    def __init__(
        self, terms: Terms, joined: dict[int, tuple[int, ...]], names: dict[tuple[int, ...], str], signs: dict[int, int]
    ):
        self.terms, self.joined, self.names, self.signs = terms, joined, names, signs
        self.atoms = {name: node for node, name in names.items()}

    def __call__(self, term: Term) -> AxisLabel:
        match term:
            case Ref(atom):
                if atom not in self.joined or self.joined[atom] not in self.names:
                    return Fixed(self.terms.size(term))
                return NodeAxis(self.names[self.joined[atom]], self.terms.size(term), self.role(term))
            case Prod(factors):
                return self.product(factors)
            case Seq(parts):
                return self.segments(parts)

    def node(self, name: str) -> Node:
        atoms = self.atoms[name]
        return Node(name, sum(self.terms.size(Ref(a)) for a in atoms), GROUP_NAMES[self.terms.group(atoms[0])])

    def role(self, ref: Ref) -> Role:
        return "out" if ref.variance == self.signs[ref.atom] else "in"

    def product(self, factors: tuple[Term, ...]) -> AxisLabel:
        labels: list[AxisLabel] = []
        for factor in factors:
            label = self(factor)
            if isinstance(label, Fixed) and labels and isinstance(labels[-1], Fixed):
                label = Fixed(labels.pop().size * label.size)
            labels.append(label)
        return Product(tuple(labels)) if len(labels) > 1 else [*labels, Fixed(1)][0]

    def segments(self, parts: tuple[Term, ...]) -> AxisLabel:
        found: list[Part] = []
        shared: dict[str, tuple[AxisLabel, list[Interval]]] = {}
        start = 0
        for term in parts:
            here = (start, start + self.terms.size(term))
            start = here[1]
            label = self(term)
            twins = self.joined.get(term.atom, ()) if isinstance(term, Ref) else ()
            if isinstance(label, NodeAxis) and len(twins) > 1:
                shared.setdefault(label.node, (label, []))[1].append(here)
            else:
                found.append(Part(label, (here,)))
        for label, intervals in shared.values():
            assert isinstance(label, NodeAxis)
            whole = NodeAxis(label.node, sum(b - a for a, b in intervals), label.role)
            found.append(Part(whole, tuple(intervals)))
        if all(isinstance(p.label, Fixed) for p in found):
            return Fixed(start)
        return Segments(tuple(found))


def _bare(label: AxisLabel) -> Iterator[tuple[str, tuple[Interval, ...]]]:
    """The nodes whose features (not their duals) stand bare on an axis, with the intervals they fill."""
    match label:
        case NodeAxis(node, size, "out"):
            yield node, ((0, size),)
        case Segments(parts):
            for part in parts:
                if isinstance(part.label, NodeAxis) and part.label.role == "out":
                    yield part.label.node, part.intervals


def _pins(terms: Terms, axes: dict[str, list[Term]], moved: set[int]) -> tuple[Pinned, ...]:
    found = []
    for path, labels in axes.items():
        for d, term in enumerate(labels):
            found += [Pinned(path, d, reason) for reason in terms.pins(term)]
            if any(r.atom not in moved for r in refs(term)) and not terms.pins(term):
                found.append(Pinned(path, d, "does not meet the inputs"))
    return tuple(found)
