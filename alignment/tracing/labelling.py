"""From unified terms to the graph: which atoms are one node, what it is called, how each axis is labelled, where to tap."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from alignment.graph import Graph, GroupName, Node, Pinned, Tap
from alignment.labels import AxisLabel, Cases, Fixed, Interval, NodeAxis, Part, Product, Role, Segments
from alignment.lookups import Lookup
from alignment.primitives import Value
from alignment.sites import Site, Use
from alignment.tracing.naming import fixed_names, node_names, signs_of
from alignment.tracing.provenance import source_line
from alignment.tracing.twins import join_twins
from alignment.tracing.views import Views
from alignment.unification.algebra import Terms
from alignment.unification.families import companions, expressions, indices
from alignment.unification.terms import Case, Group, Prod, Ref, Seq, Term, refs

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
    hidden: bool  # inside a call that cannot be tapped


def build_graph(
    terms: Terms, params: Mapping[str, Value], seen: Sequence[Seen], uses: Sequence[Use], used: Sequence[str]
) -> tuple[Graph, Mapping[str, tuple[int, ...]]]:
    """The graph of a finished walk, and the atoms that each of its nodes is.

    Args:
        terms: the store, everything unified.
        params: the variables by path.
        seen: the floating-point values that depend on the inputs, in the order of the network.
        uses: of weights, contractions before lookups.
        used: paths of the variables in the order in which the network reads them.
    """
    every, named = expressions(terms), _named(uses)
    axes = {path: [_resolved(terms, t) for t in value.axes] for path, value in params.items()}
    met = [(s, [_resolved(terms, t) for t in s.value.axes]) for s in seen]
    moved = {ref.atom for _, labels in met for t in labels for ref in refs(t)}
    mine = {ref.atom for labels in axes.values() for t in labels for ref in refs(t)}
    moved |= terms.contracted()  # the rank of a product of two leaves never meets the inputs
    free = {a for a in mine & moved if not terms.pins(Ref(a))}  # what is never read has no symmetry worth the name

    beside = companions(every)
    joined = join_twins(every, free, terms, beside)
    several = {a for a, twins in joined.items() if len(twins) > 1}
    index = indices(free, beside, joined=several, fixed={a for a in beside.keys() - free if not terms.moved(a)})
    signs = signs_of([labels for _, labels in met], axes)
    ordered = {path: axes[path] for path in [*used, *axes]}
    names = node_names(ordered, joined, signs) | fixed_names(ordered, free, index)
    label = _Labeller(terms, joined, names, signs, index)
    nodes, taps, better = _nodes_and_taps(terms, met, label)
    if better:  # the other side of a contraction can be tapped: let that one carry the features
        label.turn(better)
        nodes, taps, _ = _nodes_and_taps(terms, met, label)
    graph = Graph(
        nodes=nodes,
        axes={path: label.leaf(labels) for path, labels in axes.items()},
        pinned=_pins(terms, axes, moved),
        taps=taps,
        sites=tuple(use for use in named if isinstance(use, Site)),
        shapes={path: value.shape for path, value in params.items()},
        lookups=tuple(use for use in named if isinstance(use, Lookup)),
    )
    return graph, label.atoms


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
            found = None if item.hidden else views.tap(nodes[name], item.location, item.output)
            if found is not None and found[0] >= taps.get(name, (0,))[0]:
                taps[name] = found
        if not item.hidden:
            duals |= {name for name in views.duals() if views.tap(label.node(name), item.location, item.output, dual=True)}
    for name in label.atoms:  # those that are never seen in the data come last
        nodes.setdefault(name, label.node(name))
    return nodes, {name: tap for name, (_, tap) in taps.items()}, duals - taps.keys()


def _named(uses: Sequence[Use]) -> list[Use]:
    """The uses with names that tell several of one weight apart."""
    used: dict[str, int] = {}
    named = []
    for use in uses:
        k = used[use.path] = used.get(use.path, 0) + 1
        named.append(replace(use, name=use.path if k == 1 else f"{use.path}#{k}"))
    return named


def _resolved(terms: Terms, term: Term | None) -> Term:
    return Prod(()) if term is None else terms.resolve(term)


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
                return Cases(self.names.get((index,), ""), labels) if index in present else labels[0]

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
            elif not refs(term) and terms.size(term) > 1:
                found.append(Pinned(path, d, "its units are told apart one by one"))
    return tuple(found)
