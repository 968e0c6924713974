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
from alignment.matching_scores import Descent, objective, stacked
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
            several.match_to_reference(k, self._sweeps(several.graph, rng))
        if several.count > 2:
            mutual = _Mutual(several)
            for _ in range(self.max_sweeps):
                turns = range(several.count) if rng is None else rng.permutation(several.count).tolist()
                if not sum(mutual.turn(k, self._sweeps(several.graph, rng)) for k in turns):
                    break
            mutual.finish()
        return several

    def _sweeps(self, graph: Graph, rng: np.random.Generator | None) -> Iterator[Sequence[str]]:
        names = list(graph.nodes)
        return (names if rng is None else rng.permutation(names).tolist() for _ in range(self.max_sweeps))


class _Several:
    """The weights of several models cut into blocks, and the orders that brought them there."""

    def __init__(self, graph: Graph, weights: Sequence[Weights]) -> None:
        cut = [[block for path in w for block in blocks(graph, path, w[path])] for w in weights]
        self.graph, self.count = graph, len(weights)
        self.labels, self.tensors = stacked([labels for labels, _ in cut[0]], [[x for _, x in model] for model in cut])
        self.orders = [unmoved(graph) for _ in weights]

    def match_to_reference(self, k: int, sweeps: Iterator[Sequence[str]]) -> None:
        """Permute model k to agree with model 0."""
        descent = Descent(self.graph, self.labels, self.tensors[0], self.tensors[k])
        if _exhausted(descent, sweeps):
            self.move(k, descent)

    def move(self, k: int, descent: Descent) -> None:
        """Take the orders of a descent for model k."""
        self.orders[k] = after(self.graph, self.orders[k], descent.orders)
        self.tensors[k] = descent.theirs

    def objective(self) -> float:
        """The sum over all pairs of models of the inner product of their weights."""
        return sum(objective(a, b) for a, b in itertools.combinations(self.tensors, 2))

    def relative(self) -> list[dict[str, Order]]:
        """The orders in the units of model 0."""
        back = inverse(self.graph, self.orders[0])
        return [unmoved(self.graph), *(after(self.graph, o, back) for o in self.orders[1:])]


class _Mutual:
    """Each of several models on its way to the mean of all others.

    Scores are kept from round to round: when a model moves, the others compute those anew that see a tensor which moved.
    """

    def __init__(self, several: _Several) -> None:
        self.several, self.models = several, range(several.count)
        self.now = several.tensors
        blocks = range(len(several.labels))
        targets = [[self._mean_without(k, b) for b in blocks] for k in self.models]
        pairs = zip(targets, several.tensors, strict=True)
        self.descents = [Descent(several.graph, several.labels, target, model) for target, model in pairs]
        self.now = [descent.theirs for descent in self.descents]  # these are permuted in place
        self.outdated: list[set[int]] = [set() for _ in self.models]

    def turn(self, k: int, sweeps: Iterator[Sequence[str]]) -> bool:
        """Match one model to the mean of the others. Whether it moved."""
        for block in self.outdated[k]:
            self.descents[k].retarget(block, self._mean_without(k, block))
        self.outdated[k].clear()
        moved = _exhausted(self.descents[k], sweeps)
        blocks = self.descents[k].moved_blocks()
        for j in self.models:
            if j != k:
                self.outdated[j] |= blocks
        return moved

    def finish(self) -> None:
        """Hand the orders over."""
        for k, descent in enumerate(self.descents):
            self.several.move(k, descent)

    def _mean_without(self, k: int, block: int) -> np.ndarray:
        others = [self.now[j][block] for j in self.models if j != k]
        return sum(others[1:], others[0]) / np.float32(len(others))


def _exhausted(descent: Descent, sweeps: Iterator[Sequence[str]]) -> bool:
    """Sweep until nothing is gained. Whether something moved."""
    return bool([True for names in itertools.takewhile(descent.sweep, sweeps)])
