"""How well each unit agrees with its partners in other models, once they are matched."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from alignment.activations.correlation import deviation, living
from alignment.activations.moments import Moments
from alignment.blocks import axis_of, name_of
from alignment.graph import Graph, Node, PyTree
from alignment.permutations import Orders, blocks, origins, permuted
from alignment.weight_distance import weights

Agreement = Mapping[str, Float[np.ndarray, "*copies units"]]


def activation_agreement(graph: Graph, moments: Mapping[str, Moments], orders: Sequence[Orders]) -> Agreement:
    """The correlation of the unit at each place of model 0 with its partners, mean over the other models.

    A unit that is dead in both of two models agrees (1), one that is dead in one of them does not (0). A node that indexes
    others (heads) has the mean over itself and all that is inside each of its units.

    Args:
        graph: whose nodes were matched.
        moments: `NodeMoments` of the models before they are moved.
        orders: for each model, node -> the unit put at each place, for every node.

    Returns:
        Node -> (*copies, units), at most 1. Nodes without activations, themselves or inside, are absent.
    """
    own = {name: _correlations(graph.nodes[name], graph, m, orders) for name, m in moments.items()}
    found = {}
    for node in graph.nodes.values():
        inside = [n for n in graph.nodes.values() if node.name in n.index and n.name in own]
        parts = [_by_unit(node, n, own[n.name]) for n in inside] + ([own[node.name][..., None]] if node.name in own else [])
        if parts:
            found[node.name] = np.concatenate(parts, -1).mean(-1)
    return found


def weight_agreement(graph: Graph, models: Sequence[PyTree], orders: Sequence[Orders]) -> Agreement:
    """The cosine between the weights of the unit at each place of model 0 and of its partners, mean over the other models.

    Over every tensor that carries the node, incoming and outgoing, with all other nodes matched as well; running statistics
    are no weights. Two units without weights agree (1), one without does not (0).

    Args:
        graph: whose nodes were matched.
        models: their variables before they are moved.
        orders: for each model, node -> the unit put at each place, for every node.

    Returns:
        Node -> (*copies, units), between -1 and 1.
    """
    moved = []
    for model, order in zip(models, orders, strict=True):
        arrays = {path: np.asarray(w) for path, w in weights(model).items()}
        moved.append({path: permuted(graph, path, w, order) for path, w in arrays.items()})
    every = [_Products(graph, moved[0], other) for other in moved[1:]]
    return {node.name: np.mean([p.cosine(node) for p in every], 0) for node in graph.nodes.values()}


def _correlations(node: Node, graph: Graph, m: Moments, orders: Sequence[Orders]) -> Float[np.ndarray, "*copies units"]:
    alive, spread, cross = living(m), deviation(m), np.asarray(m.cross, np.float64)
    ours = _places(graph, node, orders[0])
    found = []
    for k in range(1, len(orders)):
        theirs = _places(graph, node, orders[k])
        a, b = alive[0][ours], alive[k][theirs]
        scale = np.where(a & b, spread[0][ours] * spread[k][theirs], 1)
        found.append(np.where(a & b, cross[k][(*ours, theirs[-1])] / scale, a == b))
    return np.mean(found, 0)


def _places(graph: Graph, node: Node, orders: Orders) -> tuple[np.ndarray, ...]:
    """Where in arrays (*fixed copies, units of all other copies) the units stand that come to each place of a node."""
    *copy, unit = origins(graph, node.name, orders)
    fixed = sum(name not in graph.nodes for name in node.index)
    free = (*node.copies[fixed:], node.size)
    return (*copy[:fixed], np.ravel_multi_index((*copy[fixed:], unit), free))


def _by_unit(node: Node, inner: Node, values: Float[np.ndarray, "*inner"]) -> Float[np.ndarray, "*copies units inside"]:
    """What is inside each unit of a node, laid out behind it."""
    axes = [inner.index.index(name) for name in (*node.index, node.name)]
    return _in_front(values, axes)


class _Products:
    """Products of the weights of two models that stand at the same places."""

    def __init__(self, graph: Graph, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]):
        pairs = [zip(blocks(graph, path, ours[path]), blocks(graph, path, theirs[path]), strict=True) for path in ours]
        self._blocks = [(labels, a, b) for pair in pairs for (labels, a), (_, b) in pair]

    def cosine(self, node: Node) -> Float[np.ndarray, "*copies units"]:
        """<a, b> / |a| |b| of the weights of each unit."""
        dot, ours, theirs = np.zeros((3, *node.copies, node.size))
        for labels, a, b in self._blocks:
            names = [name_of(label) for label in labels]
            if {*node.index, node.name} <= {*names}:
                for d in (d for d, name in enumerate(names) if name == node.name):
                    axes = [*(axis_of(labels, i) for i in node.index), d]
                    x, y = (_in_front(w, axes).astype(np.float64) for w in (a, b))
                    dot, ours, theirs = dot + (x * y).sum(-1), ours + (x * x).sum(-1), theirs + (y * y).sum(-1)
        a, b = ours > 0, theirs > 0
        return np.where(a & b, dot / np.sqrt(np.where(a & b, ours * theirs, 1)), a == b)


def _in_front(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """These axes in front, and all others as one."""
    front = np.moveaxis(x, axes, range(len(axes)))
    return front.reshape(*front.shape[: len(axes)], -1)
