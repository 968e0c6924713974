"""The weights that make each unit, in the units of the nodes before it that are aligned: features without data."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from alignment.activations.moments import Joint
from alignment.blocks import Bare, axis_of, name_of
from alignment.graph import Graph, PyTree, weights_of
from alignment.labels import Fixed, NodeAxis
from alignment.maps import Maps, carried, factor, replaced
from alignment.permutations import blocks


class IncomingWeights:
    """The incoming weights of several models, of one architecture and any widths, as if they were activations.

    Args:
        graphs: one for each model.
        models: their variables. Running statistics are no weights.
    """

    def __init__(self, graphs: Sequence[Graph], models: Sequence[PyTree]):
        self._graphs = graphs
        self._weights = [{path: np.asarray(leaf, np.float64) for path, leaf in weights_of(m).items()} for m in models]

    def joint(self, name: str, maps: Sequence[Maps]) -> Joint | None:
        """Second moments of the incoming weights of a node, in all models, as centred moments of one sample.

        Everything that makes the node counts (kernels, biases, scales of norms) and whose other axes are fixed or of nodes
        with a map; those are in the new units.

        Args:
            name: of the node.
            maps: those found so far, for each model; the same nodes in all.

        Returns:
            The moments, of which only the inner products matter; None if nothing that makes the node can be compared yet.
        """
        rows = [_rows(*one, name) for one in zip(self._graphs, self._weights, maps, strict=True)]
        if not rows[0].shape[-1]:
            return None
        features = np.concatenate(rows, axis=-2)
        return Joint(np.ones(()), np.zeros(features.shape[:-1]), features @ features.swapaxes(-1, -2))


def _rows(
    graph: Graph, weights: Mapping[str, np.ndarray], maps: Maps, name: str
) -> Float[np.ndarray, "*copies units features"]:
    """The incoming weights of one model's units; copies along other nodes are laid end to end."""
    node = graph.nodes[name]
    cut = [block for path in graph.touching(name) if path in weights for block in blocks(graph, path, weights[path])]
    making = [(labels, block) for labels, block in cut if _makes(graph, name, labels)]
    known = [(labels, block) for labels, block in making if _is_known(graph, maps, name, labels)]
    if all(len(labels) == len(node.index) + 1 for labels, _ in known) and len(known) < len(making):
        known = []  # no bias alone while there are kernels to come
    found = [_features(graph, maps, name, labels, block) for labels, block in known]
    rows = np.concatenate([np.zeros((*node.copies, node.size, 0)), *found], axis=-1)
    fixed = [n for i, n in zip(node.index, node.copies, strict=True) if i not in graph.nodes]
    return rows.reshape(*fixed, math.prod(rows.shape[len(fixed) : -1]), rows.shape[-1])


def _makes(graph: Graph, name: str, labels: Sequence[Bare]) -> bool:
    """Whether a block is among the weights that make each unit of a node."""
    carried = set(map(name_of, labels))
    roles = [label.role for label in labels if isinstance(label, NodeAxis) and label.node == name]
    return roles == ["out"] and carried.issuperset(graph.nodes[name].index)


def _is_known(graph: Graph, maps: Maps, name: str, labels: Sequence[Bare]) -> bool:
    """Whether all else that the block carries is fixed or aligned."""
    own = (name, *graph.nodes[name].index)
    return all(isinstance(label, Fixed) or label.node in maps or label.node in own for label in labels)


def _features(graph: Graph, maps: Maps, name: str, labels: Sequence[Bare], block: np.ndarray) -> np.ndarray:
    """A block (*copies, units, features) with its other axes in the new units, as `transport` would bring them there."""
    node = graph.nodes[name]
    front = [axis_of(labels, i) for i in (*node.index, name)]
    for d, label in carried(graph, labels, graph.nodes):
        if d not in front:
            matrix, axes = factor(graph, maps[label.node], labels, d)
            every = [*range(block.ndim)]
            block = np.einsum(np.asarray(matrix, np.float64), axes, block, every, replaced(d, block.ndim), optimize=True)
    return np.moveaxis(block, front, range(len(front))).reshape(*node.copies, node.size, -1)
