"""Weight matching: permutations that make the weights themselves agree, without data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from alignment.assignment import assign
from alignment.base import PermutationAlignment, Stats
from alignment.graph import STATISTICS, Graph, PyTree, flatten, positions


@dataclass(frozen=True)
class WeightMatching(PermutationAlignment):
    """Permute each model to maximise its inner product with the reference, one node at a time.

    Coordinate descent on sum over tensors of <A, P . B>: with all other nodes held, the best permutation of one node is a
    linear assignment on scores summed over every axis of every tensor that carries it (Ainsworth et al. 2022, "Git
    Re-Basin", algorithm 1). Where a tensor carries a node on two axes the other axis keeps its current permutation. The
    objective never falls; the result is a local optimum and depends on the order of the nodes: the network's own, or a
    random one in each sweep if a key is given.

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

    def _match(self, graph: Graph, ours: dict, theirs: dict, key: Array | None) -> dict[str, Int[np.ndarray, " units"]]:
        places = {name: _places(graph, name, ours) for name in graph.nodes}
        index = {name: np.arange(node.size) for name, node in graph.nodes.items()}
        theirs = dict(theirs)
        names = list(graph.nodes)
        rng = None if key is None else np.random.default_rng(np.asarray(jax.random.key_data(key)))
        for _ in range(self.max_sweeps):
            moved = False
            for name in names if rng is None else rng.permutation(names):
                scores = _scores(places[name], ours, theirs, graph.nodes[name].size)
                new = assign(scores)
                gain = scores[np.arange(len(new)), new].sum() - np.trace(scores)
                if gain <= 1e-7 * np.abs(scores).max() * len(new):  # below the rounding of the scores
                    continue
                moved, index[name] = True, index[name][new]
                _permute(places[name], theirs, new)
            if not moved:
                break
        return index


Place = tuple[str, int, np.ndarray]  # path, axis, positions of the units on it


def _places(graph: Graph, node: str, weights: dict) -> list[Place]:
    touched = graph.touching(node).items()
    return [
        (path, axis, where)
        for path, axes in touched
        if path in weights
        for axis in axes
        if (where := positions(graph.axes[path][axis], node)) is not None
    ]


def _scores(places: list[Place], ours: dict, theirs: dict, size: int) -> Float[np.ndarray, "units units"]:
    """Inner products between every unit of the reference and every unit of the other model."""
    total = np.zeros((size, size))
    for path, axis, where in places:
        a, b = (np.moveaxis(w[path], axis, 0)[where].reshape(size, -1) for w in (ours, theirs))
        total += a @ b.T
    return total


def _permute(places: list[Place], weights: dict, new: np.ndarray) -> None:
    for path, axis, where in places:
        order = np.arange(weights[path].shape[axis])
        order[where] = where[new]
        weights[path] = np.take(weights[path], order, axis)
