"""What a network costs as a function of the widths of its nodes, read off its jaxpr."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alignment.budget.polynomial import Polynomial, product, total
from alignment.checks import check_choice, check_count, check_fraction, unknown
from alignment.graph import Graph, PyTree, weights_of
from alignment.labels import AxisLabel, Cases, Fixed, NodeAxis, Product, Segments
from alignment.primitives import Value
from alignment.tracing.trace import Contraction, walked
from alignment.unification.algebra import Terms
from alignment.unification.terms import Case, Prod, Ref, Seq, Term

By = Literal["flops", "parameters"]


@dataclass(frozen=True)
class Costs:
    """The floating-point operations and the parameters of a network, as polynomials in the widths of its nodes.

    Attributes:
        operations: two for every multiply-add of the contractions (dot products, convolutions) of one forward pass over the
            inputs given, none for what is elementwise. What a convolution reads of its zero padding does not count, as in
            XLA's own analysis. A loop whose length is not known counts once, of a conditional every branch.
        weights: the elements of floating-point leaves; running statistics are none.
        sizes: the width that each node has in the network itself.
        heads: the operations and the weights of the heads that several networks have on this one (`headed_costs`).

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> v, x = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}, jnp.ones((1, 2))
        >>> found = alignment.costs(apply, alignment.trace(apply, v, x), v, x)
        >>> found.flops({"up": 6})  # with twice as many units
        36.0
        >>> found.multiple({"up": 1.0}), found.multiple({"up": 0.5})  # all, or half of the units of two networks side by side
        (2.0, 1.5)
    """

    operations: Polynomial
    weights: Polynomial
    sizes: tuple[tuple[str, int], ...]
    heads: tuple[Polynomial, Polynomial] = (Polynomial(), Polynomial())

    def flops(self, widths: Mapping[str, int] | None = None) -> float:
        """Operations of the dense network of these widths; nodes that are not named keep theirs.

        Raises ValueError for a node that the network does not have, or a width that is no positive integer.
        """
        return (self.operations + self.heads[0])(self._complete(widths))

    def parameters(self, widths: Mapping[str, int] | None = None) -> float:
        """Parameters of the dense network of these widths, as `flops` takes them."""
        return (self.weights + self.heads[1])(self._complete(widths))

    def polynomial(self, by: By) -> Polynomial:
        """Operations ("flops") or weights ("parameters"), heads as they are. Raises ValueError for anything else.

        However many units are kept separate, a head reads those of its own network: it costs what it costs there.
        """
        check_choice("by", by, ("flops", "parameters"))
        body, heads = (self.operations, self.heads[0]) if by == "flops" else (self.weights, self.heads[1])
        return body + Polynomial.constant(heads(dict(self.sizes)))

    def multiple(self, ratios: Mapping[str, float], *, models: int = 2, by: By = "flops") -> float:
        """The cost of a partially merged network (`PartialMatching`) as a multiple of that of one network.

        Blocks between separate units of different models are zero and do not count, as published: a layer costs
        `multiplier(r_out, r_in)` times its own. The dense network of these widths costs more: `flops(widths)`.

        Args:
            ratios: the fraction of units kept separate, by node; 0 for those that are not named.
            models: how many networks are merged.
            by: "flops" or "parameters".

        Raises:
            ValueError: a node that the network does not have, a ratio outside 0 to 1, fewer than one model.
        """
        check_count("models", models)
        for name, ratio in ratios.items():
            check_fraction(f"the ratio of {name!r}", ratio)
        cost, sizes = self.polynomial(by), dict(self.sizes)
        merged = {name: (1 - ratio) * sizes[name] for name, ratio in self._known(ratios).items()}
        return models - (models - 1) * cost(sizes | merged) / cost(sizes)

    def _complete(self, widths: Mapping[str, int] | None) -> dict[str, float]:
        for name, width in (widths or {}).items():
            check_count(f"the width of {name!r}", width)
        return {**dict(self.sizes), **self._known(widths or {})}

    def _known(self, values: Mapping[str, float]) -> Mapping[str, float]:
        sizes = dict(self.sizes)
        if foreign := values.keys() - sizes.keys():
            raise ValueError(unknown("node", min(foreign), sizes))
        return values


def multiplier(*ratios: float, models: int = 2) -> float:
    """How many times a layer costs when these fractions of the units on its axes are separate: N - (N - 1) prod (1 - r).

    Of the n units of an axis m = (1 - r) n are merged and N s = N r n separate; a block of weights is there if the separate
    units that it meets are all of one model. So N models have N prod n - (N - 1) prod m, the merged blocks being counted N
    times. With two axes that is m_o m_i + N m_o s_i + N s_o m_i + N s_o s_i, for two models (1 + r_i)(1 + r_o) - 2 r_i r_o of
    the original (Nasery et al. 2024); with one, m + N s.

    Raises ValueError for a ratio outside 0 to 1, or fewer than one model.
    """
    check_count("models", models)
    for ratio in ratios:
        check_fraction("a ratio", ratio)
    return models - (models - 1) * math.prod(1 - r for r in ratios)


def costs(apply: Callable[..., PyTree], graph: Graph, variables: PyTree, *inputs: PyTree) -> Costs:
    """Read the costs of `apply(variables, *inputs)` off its jaxpr. Nothing is computed.

    Args:
        apply: the network in evaluation mode.
        graph: its graph.
        variables: arrays or shapes.
        inputs: example inputs, arrays or shapes: operations are counted for their batch.

    Raises:
        ValueError: variables that do not fit the graph, a graph of another function.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> v, x = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}, jnp.ones((1, 2))
        >>> found = alignment.costs(apply, alignment.trace(apply, v, x), v, x)
        >>> found.flops(), found.parameters()  # two operations for each of 2 x 3 + 3 x 1 weights
        (18.0, 9.0)
    """
    return headed_costs([apply], [graph], [variables], (), *inputs)


def headed_costs(
    functions: Sequence[Callable[..., PyTree]],
    graphs: Sequence[Graph],
    models: Sequence[PyTree],
    own: Collection[str],
    *inputs: PyTree,
) -> Costs:
    """What networks cost that share all but the leaves `own`: one of them, and the heads of all.

    To a head belong the contractions that read such a leaf. Otherwise as `costs`, of a function and a graph for each model.
    """
    every = [_parted(*each, own, inputs) for each in zip(functions, graphs, models, strict=True)]
    sizes = tuple((name, node.size) for name, node in graphs[0].nodes.items())
    (body, _), heads = every[0], [head for _, head in every]
    return Costs(*body, sizes, (total(o for o, _ in heads), total(w for _, w in heads)))


def _parted(
    apply: Callable[..., PyTree], graph: Graph, variables: PyTree, own: Collection[str], inputs: tuple
) -> tuple[tuple[Polynomial, Polynomial], tuple[Polynomial, Polynomial]]:
    """Operations and weights of one network: of what it shares, and of what is its own."""
    graph.check(variables)
    walk = walked(apply, variables, inputs)
    _, atoms = walk.graph()
    if atoms.keys() != graph.nodes.keys():
        odd = min(atoms.keys() ^ graph.nodes.keys())
        raise ValueError(f"the graph is of another function: only one of them has the node {odd!r}")
    sizes = _Widths(walk.terms, atoms)

    def part(head: bool) -> tuple[Polynomial, Polynomial]:
        contractions = (c for c in walk.contractions if any(v.source and v.source.path in own for v in c.ins) == head)
        paths = (path for path in weights_of(variables) if (path in own) == head)
        return total(_operations(sizes, c) for c in contractions), total(product(map(_length, graph.axes[p])) for p in paths)

    return part(False), part(True)


class _Widths:
    """The sizes of terms as polynomials in the widths of nodes."""

    def __init__(self, terms: Terms, atoms: Mapping[str, tuple[int, ...]]):
        self._terms = terms
        self._atoms: dict[int, Polynomial] = {}
        for name, own in atoms.items():
            sizes = [terms.size(Ref(a)) for a in own]
            for atom, size in zip(own, sizes, strict=True):  # a node that fills several intervals has a share in each
                self._atoms[atom] = Polynomial.variable(name, size / sum(sizes))

    def axis(self, value: Value, d: int) -> Polynomial:
        """The length of an axis; one without a term keeps its own."""
        term = value.axes[d]
        return Polynomial.constant(value.shape[d]) if term is None else self.term(term)

    def term(self, term: Term) -> Polynomial:
        """The number of features of a term."""
        return self._of(self._terms.resolve(term))

    def _of(self, term: Term) -> Polynomial:
        match term:
            case Ref(atom):
                return self._atoms.get(atom) or Polynomial.constant(self._terms.size(term))
            case Seq(parts):
                return total(map(self._of, parts))
            case Prod(factors):
                return product(map(self._of, factors))
            case Case(_, options):
                return self._of(options[0])


def _operations(sizes: _Widths, contraction: Contraction) -> Polynomial:
    """Two for every multiply-add, in all steps of the loops around."""
    loops = [sizes.term(term) for term in contraction.loops]
    axes = _dot_general if contraction.eqn.primitive.name == "dot_general" else _convolution
    return product([Polynomial.constant(2), *loops, *axes(sizes, contraction)])


def _dot_general(sizes: _Widths, contraction: Contraction) -> Iterator[Polynomial]:
    """All axes of the first operand and the free ones of the second."""
    (left, right), numbers = contraction.ins, contraction.eqn.params["dimension_numbers"]
    partner = {a: b for ours, theirs in numbers for a, b in zip(ours, theirs, strict=True)}
    for d, term in enumerate(left.axes):
        yield sizes.axis(left, d) if term is not None or d not in partner else sizes.axis(right, partner[d])
    for d in set(range(len(right.axes))) - set(partner.values()):
        yield sizes.axis(right, d)


def _convolution(sizes: _Widths, contraction: Contraction) -> Iterator[Polynomial]:
    """Images, channels made, channels read by each of them, and for each spatial axis what the window sees of the image."""
    (image, kernel), p = contraction.ins, contraction.eqn.params
    numbers = p["dimension_numbers"]
    yield sizes.axis(contraction.out, numbers.out_spec[0])
    yield sizes.axis(contraction.out, numbers.out_spec[1])
    yield sizes.axis(kernel, numbers.rhs_spec[1])
    for d, (low, _) in enumerate(p["padding"]):
        read, window = image.shape[numbers.lhs_spec[2 + d]], kernel.shape[numbers.rhs_spec[2 + d]]
        made = contraction.out.shape[numbers.out_spec[2 + d]]
        steps = (p["window_strides"][d], p["rhs_dilation"][d], p["lhs_dilation"][d])
        yield Polynomial.constant(places_read(read, window, made, low, steps))


def places_read(read: int, window: int, made: int, low: int, steps: tuple[int, int, int]) -> int:
    """How many pairs of a place made and a place of the window meet an element: neither padding nor the gaps of a dilation."""
    stride, dilation, gap = steps
    places = stride * np.arange(made)[:, None] + dilation * np.arange(window) - low
    return int(np.sum((places >= 0) & (places <= (read - 1) * gap) & (places % gap == 0)))


def _length(label: AxisLabel) -> Polynomial:
    match label:
        case NodeAxis(node):
            return Polynomial.variable(node)
        case Product(factors):
            return product(map(_length, factors))
        case Segments(parts):
            return total(_length(part.label) for part in parts)
        case Cases(_, options):
            return _length(options[0])
        case Fixed(size):
            return Polynomial.constant(size)
