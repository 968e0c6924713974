"""Weight matching: permutations that make the weights themselves agree, without data."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignment.base import PermutationAlignment, Stats
from alignment.graph import STATISTICS, Graph, PyTree, flatten
from alignment.matching_scores import Descent, objective
from alignment.permutations import Order, Weights, after, blocks, inverse, unmoved


@dataclass(frozen=True)
class WeightMatching(PermutationAlignment):
    """Permute each model to maximise its inner product with the others, one node at a time.

    Coordinate descent on sum over tensors of <A, P . B>: with all other nodes held, the best permutation of one node is a
    linear assignment on scores summed over every axis of every tensor that carries it (Ainsworth et al. 2022, "Git
    Re-Basin", algorithm 1). Where a tensor carries a node on two axes, each axis is scored with the other as it is, and the
    permutation is only taken if the objective itself rises. A node that indexes others (heads) is matched together with what
    is inside it, on two levels. So the objective never falls; the result is a local optimum and depends on the order of the
    nodes: the network's own at first, a random one in each sweep of a restart.

    More than two models are first matched to model 0, then in turns each to the mean of all others until none of them gains
    (MergeMany, algorithm 2), which raises the sum of the inner products of all pairs; last, all are brought into the units of
    model 0. So they depend on one another.

    Attributes:
        max_sweeps: at most this many passes over all nodes, and over all models.
        restarts: how often to start from the identity; the outcome of the highest objective is kept.
        exclude: paths matching this expression take no part in the scores: running statistics are not weights.
    """

    max_sweeps: int = 100
    restarts: int = 1
    exclude: str = STATISTICS

    def __post_init__(self) -> None:
        if self.max_sweeps < 1 or self.restarts < 1:
            raise ValueError(f"max_sweeps and restarts must be positive, got {self.max_sweeps} and {self.restarts}")

    def init(self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> list:
        """For each model, node -> index of the unit put at each place (*copies, units); the identity for model 0.

        The key is for the orders of the restarts; without one they are those of a fixed key.
        """
        weights = [self._weights(m) for m in models]
        seed = jax.random.key_data(jax.random.key(0) if key is None else key)
        rngs = [None, *(np.random.default_rng([*np.ravel(seed).tolist(), k]) for k in range(1, self.restarts))]
        runs = [self._run(_Several(graph, weights), rng) for rng in rngs]
        best = max(runs, key=_Several.objective)
        return best.relative()

    def _weights(self, model: PyTree) -> Weights:
        leaves = flatten(model).items()
        kept = {path: x for path, x in leaves if not re.search(self.exclude, path) and jnp.issubdtype(x.dtype, jnp.floating)}
        return {path: np.asarray(x, np.float32) for path, x in kept.items()}

    def _run(self, several: "_Several", rng: np.random.Generator | None) -> "_Several":
        for k in range(1, several.count):
            several.match(k, several.tensors[0], self._sweeps(several.graph, rng))
        if several.count > 2:
            self._to_the_mean(several, rng)
        return several

    def _to_the_mean(self, several: "_Several", rng: np.random.Generator | None) -> None:
        every = range(several.count)
        stale = {*every}  # their mean of the others is another than at their last turn
        for _ in range(self.max_sweeps):
            for k in every if rng is None else rng.permutation(every).tolist():
                if k in stale:
                    moved = several.match(k, several.mean_without(k), self._sweeps(several.graph, rng))
                    stale = {*every} - {k} if moved else stale - {k}
            if not stale:
                break

    def _sweeps(self, graph: Graph, rng: np.random.Generator | None) -> Iterator[Sequence[str]]:
        names = list(graph.nodes)
        return (names if rng is None else rng.permutation(names).tolist() for _ in range(self.max_sweeps))


class _Several:
    """The weights of several models cut into blocks, and the orders that brought them there."""

    def __init__(self, graph: Graph, weights: Sequence[Weights]) -> None:
        cut = [[block for path in w for block in blocks(graph, path, w[path])] for w in weights]
        self.graph, self.count, self.labels = graph, len(weights), [labels for labels, _ in cut[0]]
        self.tensors = [[x for _, x in model] for model in cut]
        self.orders = [unmoved(graph) for _ in weights]

    def mean_without(self, k: int) -> list[np.ndarray]:
        """The mean of all models but one."""
        others = [model for j, model in enumerate(self.tensors) if j != k]
        return [sum(same[1:], same[0]) / np.float32(len(same)) for same in zip(*others, strict=True)]

    def match(self, k: int, target: Sequence[np.ndarray], sweeps: Iterator[Sequence[str]]) -> bool:
        """Permute model k to agree with the target. Whether it moved."""
        descent = Descent(self.graph, self.labels, target, self.tensors[k])
        moved = [True for names in itertools.takewhile(descent.sweep, sweeps)]
        if moved:
            self.orders[k] = after(self.graph, self.orders[k], descent.orders)
            self.tensors[k] = descent.theirs
        return bool(moved)

    def objective(self) -> float:
        """The sum over all pairs of models of the inner product of their weights."""
        return sum(objective(a, b) for a, b in itertools.combinations(self.tensors, 2))

    def relative(self) -> list[dict[str, Order]]:
        """The orders in the units of model 0."""
        back = inverse(self.graph, self.orders[0])
        return [unmoved(self.graph), *(after(self.graph, o, back) for o in self.orders[1:])]
