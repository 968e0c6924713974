"""Partial matching: the units that fit best are merged, the others stay side by side in a wider network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from alignment.activations.moments import NodeMoments
from alignment.base import Alignment, MapAlignment, PermutationAlignment, Stats, Theta
from alignment.checks import check_fraction, repeated
from alignment.graph import Graph, PyTree
from alignment.maps import NodeMap, identity
from alignment.methods.starts import orders_of
from alignment.methods.unit_agreement import Agreement, activation_agreement, weight_agreement
from alignment.methods.weight_matching import WeightMatching
from alignment.own_leaves import own_leaves, without
from alignment.per_model import Graphs, of_one_width
from alignment.permutations import Order
from alignment.separability import check_separable, separable

Ratios = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class PartialMatching(MapAlignment):
    """Merge the units of each node that agree best with their partners and keep a fraction of them separate in every model.

    The partial matching of PLeaS (Nasery et al. 2024, "PLeaS: Merging Models with Permutations and Least Squares",
    arXiv 2407.02447), published for two models, here for N. Every model is matched to model 0. Of the n units of a node with
    ratio r the k = round((1 - r) n) that agree best are merged, ties by index; the new width is k + N (n - k), in the order
    [merged | separate of model 0 | separate of model 1 | ...], each part in the order of model 0. How well a unit agrees is
    the mean over the other models of the correlation with its partner where `matching` goes by activations (whatever its
    cost; the published code compares distances), else of the cosine of their incoming and outgoing weights
    (`unit_agreement`).

    The plain average of the models that `align` returns is the merged network, for `resize(apply, graph, merged, widths)` to
    run. Its weights are, by blocks of the units that they make (rows) and read (columns),

        merged <- merged: mean of all W_j      merged <- separate of j: W_j / N
        separate of j <- merged or its own: W_j            separate of j <- separate of another: 0

    so biases and norms are the mean of all or those of j, and an output layer reads W_j / N and adds the mean bias. The ratio
    0 gives the average of the permuted networks, and the ratio 1 everywhere their ensemble: the mean of their outputs, exactly
    if units meet only in products with weights (ReLU, BatchNorm in evaluation mode, GroupNorm whose groups are separated
    whole). A LayerNorm or a softmax over separated units normalises those of all models at once, which is approximate.

    Networks with different numbers of outputs, one graph for each, keep their heads: run them by `npmerge.multi_head`.

    Nodes listed by `separability.held` always have ratio 0: what is inside heads, streams between RMSNorms, tied embeddings.
    Heads, which others are inside of, are kept separate whole. Nodes that are stacked along one axis need one ratio.

    Attributes:
        matching: what finds the permutations.
        ratio: the fraction of the units kept separate, for every node that can change its width, or by node (a mapping, or
            pairs, as which it is kept; nodes that are not named are merged).

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> a = {"up": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "down": jnp.ones((2, 1))}
        >>> b = {"up": jnp.array([[0.5, 1.0], [-1.0, 0.0]]), "down": jnp.ones((2, 1))}
        >>> graph, partial = alignment.trace(apply, a, jnp.ones((1, 2))), alignment.PartialMatching(ratio=0.5)
        >>> partial.widths(graph, models=2)  # one unit that is merged, and one of each model
        {'up': 3}
        >>> merged = nm.Average()(nm.stack_models(alignment.align(partial, graph, [a, b])))
        >>> merged["up"].tolist(), merged["down"].tolist()
        ([[0.75, 0.0, 1.0], [-0.5, 1.0, 0.0]], [[1.0], [0.5], [0.5]])
        >>> alignment.resize(apply, graph, merged)(merged, jnp.ones((1, 2))).tolist()
        [[1.25]]
    """

    matching: Alignment = field(default_factory=WeightMatching)
    ratio: float | Mapping[str, float] | Ratios = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.matching, PermutationAlignment):
            raise ValueError(f"PartialMatching starts from an alignment by permutations, got {self.matching!r}")
        object.__setattr__(self, "ratio", _checked(self.ratio))

    @property
    def needs(self) -> tuple[type, ...]:
        """What the matching needs."""
        return self.matching.needs

    def ratios(self, graph: Graph) -> dict[str, float]:
        """The ratio of every node of a graph. Raises ValueError for a named node that cannot change its width, or is none."""
        named = dict.fromkeys(separable(graph), self.ratio) if isinstance(self.ratio, float) else dict(self.ratio)
        check_separable(graph, named)
        return dict.fromkeys(graph.nodes, 0.0) | named

    def merged(self, graph: Graph) -> dict[str, int]:
        """The number of merged units of every node, which stand in front."""
        return {name: merged_units(graph.nodes[name].size, ratio) for name, ratio in self.ratios(graph).items()}

    def widths(self, graph: Graph, models: int) -> dict[str, int]:
        """The new width of every node for so many models: what `resize` takes."""
        return {name: k + models * (graph.nodes[name].size - k) for name, k in self.merged(graph).items()}

    def init(self, graph: Graphs, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> Theta:
        """For each model, node -> its map: push (*copies, new, old) and pull (*copies, old, new), float32.

        One model has nobody to be separate from: the identity.

        Raises:
            ValueError: as `ratios` and the matching do, or nodes of several widths.
        """
        own, count = of_one_width(self, graph, models), len(models)
        merged = self.merged(own)
        if count == 1:
            return [{n.name: jax.device_put(identity(n.size, n.copies)) for n in own.nodes.values()}]
        return matched(self.matching, own, models, stats=stats, key=key).maps(merged)


def merged_units(size: int, ratio: float) -> int:
    """How many of `size` units are merged when this fraction of them stays separate: round((1 - ratio) size)."""
    return round((1 - ratio) * size)


class Matched(NamedTuple):
    """Several models matched to the first.

    Attributes:
        orders: for each model, node -> the unit put at each place (*copies, units).
        agreement: node -> how well the unit at each place agrees with its partners (*copies, units): by activations where the
            matching goes by them and they are known, else by weights.
    """

    orders: Sequence[Mapping[str, Order]]
    agreement: Agreement

    def maps(self, merged: Mapping[str, int]) -> list[dict[str, NodeMap]]:
        """The maps of each model that merge so many units of every node, those that agree best: see `PartialMatching.init`."""
        places, count = {name: _ranked(self.agreement[name], k) for name, k in merged.items()}, len(self.orders)
        return [{n: _map(order[n], places[n], k, j, count) for n, k in merged.items()} for j, order in enumerate(self.orders)]


def matched(
    matching: Alignment, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None
) -> Matched:
    """The permutations that an alignment finds, and how well each unit then agrees with its partners.

    Networks with different numbers of outputs are matched by what they have in common: heads take no part.
    """
    models = without(models, own_leaves(graph, models))
    orders = orders_of(matching, graph, models, stats=stats, key=key)
    by_activations: Agreement = {}
    if stats is not None and NodeMoments in matching.needs:
        by_activations = activation_agreement(graph, stats[NodeMoments], orders)
    if by_activations.keys() >= graph.nodes.keys():
        return Matched(orders, by_activations)
    return Matched(orders, {**weight_agreement(graph, models, orders), **by_activations})


def _checked(ratio: Any) -> float | Ratios:
    """One ratio for all nodes, or pairs by name in their order."""
    if not isinstance(ratio, Mapping | tuple):
        check_fraction("the ratio", ratio)
        return float(ratio)
    pairs = tuple(ratio.items() if isinstance(ratio, Mapping) else ratio)
    if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise ValueError(f"ratio must be a number, or one by node as a mapping or as pairs (node, ratio): got {ratio!r}")
    for name, each in pairs:
        check_fraction(f"the ratio of {name!r}", each)
    if twice := repeated(name for name, _ in pairs):
        raise ValueError(f"ratio names {twice!r} more than once: give each node one ratio, got {ratio!r}")
    return tuple(sorted((name, float(each)) for name, each in pairs))


def _ranked(agreement: Float[np.ndarray, "*copies units"], merged: int) -> Int[np.ndarray, "*copies units"]:
    """The places of the best units, ascending, then those of all others, ascending."""
    best = np.argsort(-np.round(agreement, 6), -1, kind="stable")  # what differs by rounding is a tie
    return np.concatenate([np.sort(best[..., :merged], -1), np.sort(best[..., merged:], -1)], -1)


def _map(order: Order, places: Int[np.ndarray, "*copies units"], merged: int, model: int, models: int) -> NodeMap:
    """The map of one model of several from its own units to the common ones."""
    size = order.shape[-1]
    own = np.eye(size, dtype=np.float32)[np.take_along_axis(order, places, -1)]  # (*copies, merged and separate, old)
    push = np.zeros((*order.shape[:-1], merged + models * (size - merged), size), np.float32)
    start = merged + model * (size - merged)
    rows = [*range(merged), *range(start, start + size - merged)]
    push[..., rows, :] = own
    pull = np.swapaxes(push, -1, -2).copy()
    push[..., merged:, :] *= models  # the average over the models divides by as many
    return jax.device_put(NodeMap(push, pull))
