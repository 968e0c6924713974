"""From unified terms to the graph: which atoms are one node, what it is called, how each axis is labelled, where to tap."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from alignment.families import Expression, cases_in, companions, expressions, indices
from alignment.graph import Graph, GroupName, Node, Pinned, Tap
from alignment.labels import AxisLabel, Cases, Fixed, Interval, NodeAxis, Part, Product, Role, Segments
from alignment.primitives import Value
from alignment.provenance import source_line
from alignment.sites import Site
from alignment.terms import Case, Group, Prod, Ref, Seq, Term, Terms, refs
from alignment.views import Views

GROUP_NAMES: dict[Group, GroupName] = {
    Group.PERMUTATION: "permutation",
    Group.SCALE: "scale",
    Group.ORTHOGONAL: "orthogonal",
    Group.LINEAR: "linear",
}


@dataclass(frozen=True)
class Seen:
    """A value on the way from the inputs, the equation that made it and the axes of the loops around that."""

    location: tuple[int, ...]
    output: int
    value: Value
    loops: tuple[Term, ...]


def build_graph(
    terms: Terms, params: Mapping[str, Value], seen: Sequence[Seen], sites: Sequence[Site], used: Sequence[str]
) -> Graph:
    """The graph of a finished walk.

    Args:
        terms: the store, everything unified.
        params: the variables by path.
        seen: the floating-point values that depend on the inputs, in the order of the network.
        sites: the contractions of weights.
        used: paths of the variables in the order in which the network reads them.
    """
    every = expressions(terms)
    axes = {path: [_resolved(terms, t) for t in value.axes] for path, value in params.items()}
    met = [(s, [_resolved(terms, t) for t in s.value.axes]) for s in seen]
    moved = {ref.atom for _, labels in met for t in labels for ref in refs(t)}
    mine = {ref.atom for labels in axes.values() for t in labels for ref in refs(t)}
    moved |= terms.contracted()  # the rank of a product of two leaves never meets the inputs
    free = {a for a in mine & moved if not terms.pins(Ref(a))}  # what is never read has no symmetry worth the name

    beside = companions(every)
    joined = _join_twins(every, free, terms, beside)
    several = {a for a, twins in joined.items() if len(twins) > 1}
    index = indices(free, beside, joined=several, fixed=beside.keys() - free)
    signs = _signs([labels for _, labels in met], axes)
    ordered = {path: axes[path] for path in [*used, *axes]}
    names = _names(ordered, joined, signs) | _fixed_names(ordered, free, index)
    label = _Labeller(terms, joined, names, signs, index)
    nodes, taps, better = _nodes_and_taps(terms, met, label)
    if better:  # the other side of a contraction can be tapped: let that one carry the features
        label.turn(better)
        nodes, taps, _ = _nodes_and_taps(terms, met, label)
    return Graph(
        nodes=nodes,
        axes={path: label.leaf(labels) for path, labels in axes.items()},
        pinned=_pins(terms, axes, moved),
        taps=taps,
        sites=_named(sites),
        shapes={path: value.shape for path, value in params.items()},
    )


def _nodes_and_taps(
    terms: Terms, met: list[tuple[Seen, list[Term]]], label: "_Labeller"
) -> tuple[dict[str, Node], dict[str, Tap], set[str]]:
    """The nodes in the order of the network, and for each the view of it with most samples, the last of its kind.

    Also the nodes that cannot be tapped but whose duals can.
    """
    nodes: dict[str, Node] = {}
    taps: dict[str, tuple[int, Tap]] = {}
    duals: set[str] = set()
    for item, labels in met:
        loops = [Fixed(terms.size(t), label.name(terms.resolve(t))) for t in item.loops]
        views = Views(label.leaf(labels), item.value.shape, loops)
        for name in views.names():
            if name not in nodes:
                nodes[name] = label.node(name)
            found = views.tap(nodes[name], item.location, item.output)
            if found is not None and found[0] >= taps.get(name, (0,))[0]:
                taps[name] = found
        duals |= {name for name in views.duals() if views.tap(label.node(name), item.location, item.output, dual=True)}
    for name in label.atoms:  # those that are never seen in the data come last
        nodes.setdefault(name, label.node(name))
    return nodes, {name: tap for name, (_, tap) in taps.items()}, duals - taps.keys()


def _named(sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites with names that tell several of one weight apart."""
    used: dict[str, int] = {}
    named = []
    for site in sites:
        k = used[site.path] = used.get(site.path, 0) + 1
        named.append(replace(site, name=site.path if k == 1 else f"{site.path}#{k}"))
    return tuple(named)


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


def _join_twins(
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


def _fixed_names(axes: dict[str, list[Term]], free: set[int], index: dict[int, tuple[int, ...]]) -> dict[tuple[int, ...], str]:
    """A name for each fixed axis that nodes are indexed by: the first leaf it is an axis of, and which."""
    named = {i for by in index.values() for i in by} - free
    cases = {case.index for labels in axes.values() for term in labels for case in cases_in(term)}
    names: dict[tuple[int, ...], str] = {}
    for path, labels in axes.items():
        for d, term in enumerate(labels):
            for atom in {r.atom: None for r in refs(term)}.keys() & (named | cases):
                names.setdefault((atom,), f"{path}[{d}]")
    return names


class _Labeller:
    """Turns resolved terms into the labels of the graph."""

    def __init__(
        self,
        terms: Terms,
        joined: dict[int, tuple[int, ...]],
        names: dict[tuple[int, ...], str],
        signs: dict[int, int],
        index: dict[int, tuple[int, ...]],
    ):
        self.terms, self.joined, self.names, self.signs, self.index = terms, joined, names, signs, index
        self.atoms = {name: atoms for atoms, name in names.items() if atoms[0] in joined}

    def leaf(self, axes: Sequence[Term]) -> tuple[AxisLabel, ...]:
        """The labels of all axes of one array. A case whose index is not among them has but one option."""
        present = {ref.atom for term in axes for ref in refs(term)}
        return tuple(self(term, present) for term in axes)

    def __call__(self, term: Term, present: set[int]) -> AxisLabel:
        match term:
            case Ref(atom):
                if atom in self.joined and self.joined[atom] in self.names:
                    return NodeAxis(self.names[self.joined[atom]], self.terms.size(term), self.role(term))
                return Fixed(self.terms.size(term), self.names.get((atom,), ""))
            case Prod(factors):
                return self.product([self(f, present) for f in factors])
            case Seq(parts):
                return self.segments(parts, present)
            case Case(index, options):
                labels = tuple(self(o, present) for o in options)
                return Cases(self.names[index,], labels) if index in present else labels[0]

    def turn(self, names: Iterable[str]) -> None:
        """Let the other variance of these nodes carry the features."""
        for name in names:
            for atom in self.atoms[name]:
                self.signs[atom] = -self.signs[atom]

    def name(self, term: Term) -> str:
        """The name of a bare fixed axis, if it has one."""
        return self.names.get((term.atom,), "") if isinstance(term, Ref) else ""

    def node(self, name: str) -> Node:
        atoms = self.atoms[name]
        by = [(self.joined.get(i, (i,)), self.terms.size(Ref(i))) for i in self.index[atoms[0]]]
        index, copies = tuple(self.names[i] for i, _ in by), tuple(n for _, n in by)
        size = sum(self.terms.size(Ref(a)) for a in atoms)
        return Node(name, size, GROUP_NAMES[self.terms.group(atoms[0])], index, copies)

    def role(self, ref: Ref) -> Role:
        return "out" if ref.variance == self.signs[ref.atom] else "in"

    def product(self, factors: Sequence[AxisLabel]) -> AxisLabel:
        labels: list[AxisLabel] = []
        for label in factors:
            if isinstance(label, Fixed) and not label.name and labels and isinstance(labels[-1], Fixed) and not labels[-1].name:
                label = Fixed(labels.pop().size * label.size)
            labels.append(label)
        return Product(tuple(labels)) if len(labels) > 1 else [*labels, Fixed(1)][0]

    def segments(self, parts: tuple[Term, ...], present: set[int]) -> AxisLabel:
        found: list[Part] = []
        shared: dict[str, tuple[AxisLabel, list[Interval]]] = {}
        start = 0
        for term in parts:
            here = (start, start + self.terms.size(term))
            start = here[1]
            label = self(term, present)
            twins = self.joined.get(term.atom, ()) if isinstance(term, Ref) else ()
            if isinstance(label, NodeAxis) and len(twins) > 1:
                shared.setdefault(label.node, (label, []))[1].append(here)
            else:
                found.append(Part(label, (here,)))
        for label, intervals in shared.values():
            assert isinstance(label, NodeAxis)
            whole = NodeAxis(label.node, sum(b - a for a, b in intervals), label.role)
            found.append(Part(whole, tuple(intervals)))
        if all(isinstance(p.label, Fixed) and not p.label.name for p in found):
            return Fixed(start)
        return Segments(tuple(found))


def _pins(terms: Terms, axes: dict[str, list[Term]], moved: set[int]) -> tuple[Pinned, ...]:
    found = []
    for path, labels in axes.items():
        for d, term in enumerate(labels):
            reasons = terms.pins(term)
            found += [Pinned(path, d, reason, source_line(where)) for reason, where in reasons.items()]
            if not reasons and any(r.atom not in moved for r in refs(term)):
                found.append(Pinned(path, d, "the function does not read it"))
    return tuple(found)
