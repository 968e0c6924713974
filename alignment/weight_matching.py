"""Weight matching: permutations that make the weights themselves agree, without data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Int

from alignment.assignment import assign
from alignment.base import PermutationAlignment, Stats
from alignment.graph import STATISTICS, AxisLabel, Graph, PyTree, flatten, positions, reordered

Weights = dict[str, np.ndarray]
Place = tuple[str, int, AxisLabel]  # path, axis and its label


@dataclass(frozen=True)
class WeightMatching(PermutationAlignment):
    """Permute each model to maximise its inner product with the reference, one node at a time.

    Coordinate descent on sum over tensors of <A, P . B>: with all other nodes held, the best permutation of one node is a
    linear assignment on scores summed over every axis of every tensor that carries it (Ainsworth et al. 2022, "Git
    Re-Basin", algorithm 1). Where a tensor carries a node on two axes, each axis is scored with the other as it is, and the
    permutation is only taken if the objective itself rises. So the objective never falls; the result is a local optimum and
    depends on the order of the nodes: the network's own, or a random one in each sweep if a key is given.

    Attributes:
        max_sweeps: at most this many passes over all nodes.
        exclude: paths matching this expression take no part in the scores: running statistics are not weights.
    """

    max_sweeps: int = 100
    exclude: str = STATISTICS

    def init(self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> list:
        """For each model, node -> index of the unit put at each place; the identity for model 0."""
        reference, *others = [self._weights(m) for m in models]
        keys = [None] * len(others) if key is None else list(jax.random.split(key, len(others)))
        same = {name: np.arange(node.size) for name, node in graph.nodes.items()}
        return [same, *(self._match(graph, reference, w, k) for w, k in zip(others, keys, strict=True))]

    def _weights(self, model: PyTree) -> dict[str, np.ndarray]:
        leaves = flatten(model).items()
        return {path: np.asarray(x, np.float32) for path, x in leaves if not re.search(self.exclude, path)}

    def _match(self, graph: Graph, ours: Weights, theirs: Weights, key: Array | None) -> dict[str, Int[np.ndarray, " units"]]:
        index = {name: np.arange(node.size) for name, node in graph.nodes.items()}
        places = {name: _places(graph, name, ours) for name in index}
        rng = None if key is None else np.random.default_rng(np.asarray(jax.random.key_data(key)))
        for _ in range(self.max_sweeps):
            moved = False
            for name in list(index) if rng is None else rng.permutation(list(index)):
                new = _improvement(places[name], name, ours, theirs, graph.nodes[name].size)
                if new is not None:
                    moved, index[name] = True, index[name][new]
                    theirs = theirs | _permuted(places[name], name, theirs, new)
            if not moved:
                break
        return index


def _places(graph: Graph, node: str, weights: Weights) -> list[Place]:
    touched = graph.touching(node).items()
    return [(path, axis, graph.axes[path][axis]) for path, axes in touched if path in weights for axis in axes]


def _improvement(places: list[Place], node: str, ours: Weights, theirs: Weights, size: int) -> np.ndarray | None:
    """The best permutation of one node, or None if it does not raise the objective by more than rounding."""
    scores = np.zeros((size, size))
    linear = len({path for path, *_ in places}) == len(places)
    for path, axis, label in places:
        where = positions(label, node)
        assert where is not None
        linear &= np.unique(where).size == where.size
        a, b = (np.moveaxis(w[path], axis, 0)[where].reshape(size, -1) for w in (ours, theirs))
        scores += a @ b.T
    new = assign(scores)
    if linear:
        gain = scores[np.arange(size), new].sum() - np.trace(scores)
    else:  # a tensor that carries the node twice moves on both axes at once: the scores only approximate its share
        permuted = _permuted(places, node, theirs, new)
        gain = sum(np.vdot(ours[path], w - theirs[path]) for path, w in permuted.items())
    return new if gain > 1e-7 * np.abs(scores).max() * size else None


def _permuted(places: list[Place], node: str, weights: Weights, new: np.ndarray) -> Weights:
    """The tensors that carry a node, with its units in a new order."""
    moved: Weights = {}
    for path, axis, label in places:
        moved[path] = np.take(moved.get(path, weights[path]), reordered(label, node, new), axis)
    return moved
