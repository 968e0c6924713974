"""Weight matching: permutations that make the weights themselves agree, without data."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array

from alignment.base import PermutationAlignment, Stats
from alignment.blocks import Bare, each_block
from alignment.checks import check_count, check_pattern
from alignment.graph import Graph, PyTree, flatten, floating
from alignment.labels import Fixed, NodeAxis
from alignment.methods.matching_blocks import Layout, stacked
from alignment.methods.matching_scores import Descent, objective
from alignment.names import STATISTICS
from alignment.permutations import Order, Weights, after, inverse, unmoved


@dataclass(frozen=True)
class WeightMatching(PermutationAlignment):
    """Permute each model to maximise its inner product with the others, one node at a time.

    Coordinate descent on sum over tensors of <A, P . B>: with all other nodes held, the best permutation of one node is a
    linear assignment on scores summed over every axis of every tensor that carries it (Ainsworth et al. 2022, "Git
    Re-Basin", algorithm 1). Where a tensor carries a node on two axes, each axis is scored with the other as it is, and the
    permutation is only taken if the objective itself rises. A node that indexes others (heads) is matched together with what
    is inside it, on two levels. So the objective never falls; the result is a local optimum and depends on the order of the
    nodes: the network's own at first, a random one in each sweep of a restart. A node whose assignments cost more than those of
    all others together (a wide residual stream) has its turn once where the others have two.

    More than two models are first matched each to the sum of those before it, then in turns each to the sum of all others until
    none of them gains (MergeMany, algorithm 2, whose mean asks for the same permutation), which raises the sum of the inner
    products of all pairs; last, all are brought into the units of model 0. So they depend on one another.

    Attributes:
        max_sweeps: at most this many passes over all nodes, and over all models.
        restarts: how often to start from the identity; the outcome of the highest objective is kept.
        exclude: paths matching this expression take no part in the scores: running statistics are not weights.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> a = {"up": jnp.array([[1.0, 2.0, 3.0]]), "down": jnp.array([[1.0], [2.0], [3.0]])}
        >>> b = {"up": jnp.array([[3.0, 1.1, 2.0]]), "down": jnp.array([[3.0], [1.0], [2.1]])}
        >>> graph = alignment.trace(apply, a, jnp.ones((1, 1)))
        >>> theta = alignment.WeightMatching().init(graph, [a, b])
        >>> theta[1]["up"].tolist()  # the unit of b that is put at each place
        [1, 2, 0]
    """

    max_sweeps: int = 100
    restarts: int = 1
    exclude: str = STATISTICS

    def __post_init__(self) -> None:
        check_count("max_sweeps", self.max_sweeps)
        check_count("restarts", self.restarts)
        check_pattern("exclude", self.exclude)

    def init(self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> list:
        """For each model, node -> index of the unit put at each place (*copies, units); the identity for model 0.

        The key is for the orders of the restarts; without one they are those of a fixed key.
        """
        labels, tensors = _cut(graph, self._weights(models))
        start = _Several(graph, [Layout(x) for x in labels], tensors)
        seed = jax.random.key_data(jax.random.key(0) if key is None else key)
        rngs = [None, *(np.random.default_rng([*np.ravel(seed).tolist(), k]) for k in range(1, self.restarts))]
        runs = (self._run(start.again(), rng) for rng in rngs)  # of which no more than two are held
        best = next(runs) if self.restarts == 1 else max(runs, key=_Several.objective)
        return best.relative()

    def _weights(self, models: Sequence[PyTree]) -> list[Weights]:
        paths = list(flatten(models[0]))  # once: to write them takes longer than to look at the leaves
        kept = {path for path in floating(models[0]) if not re.search(self.exclude, path)}
        leaves = [zip(paths, jax.tree.leaves(model), strict=True) for model in models]
        return [{path: np.asarray(x, np.float32) for path, x in each if path in kept} for each in leaves]

    def _run(self, several: "_Several", rng: np.random.Generator | None) -> "_Several":
        several.match_one_by_one(lambda: self._sweeps(several.graph, rng))
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


def _cut(graph: Graph, weights: Sequence[Weights]) -> tuple[list, list[list[np.ndarray]]]:
    """The labels of all blocks, and the blocks of each model, which are cut at once."""
    found: list[tuple[Sequence[Bare], Sequence[np.ndarray]]] = []

    def keep(labels: Sequence[Bare], block: np.ndarray) -> np.ndarray:
        found.append((labels[1:], list(block)))
        return block

    for path, labels in ((path, graph.axes[path]) for path in weights[0]):
        same = [w[path] for w in weights]
        bare = [label for label in labels if isinstance(label, NodeAxis | Fixed)]
        if len(bare) == len(labels):
            found.append((bare, same))  # nothing to cut, so nothing to copy
        else:
            each_block([Fixed(len(weights)), *labels], np.stack(same), keep)
    return stacked([labels for labels, _ in found], [[block[k] for _, block in found] for k in range(len(weights))])


class _Several:
    """The weights of several models cut into blocks, and the orders that brought them there."""

    def __init__(self, graph: Graph, labels: Sequence[Layout], tensors: Sequence[list[np.ndarray]]) -> None:
        self.graph, self.labels, self.tensors = graph, labels, list(tensors)
        self.count = len(self.tensors)
        self.orders = [unmoved(graph) for _ in self.tensors]

    def again(self) -> "_Several":
        """The same weights for another run: moving a model puts other arrays in the place of its own."""
        return _Several(self.graph, self.labels, self.tensors)

    def match_one_by_one(self, sweeps: Callable[[], Iterator[Sequence[str]]]) -> None:
        """Permute each model to agree with the sum of those before it: the closer they start, the fewer turns follow."""
        total = self.tensors[0]
        for k in range(1, self.count):
            descent = Descent(self.graph, self.labels, total, self.tensors[k])
            if _exhausted(descent, sweeps()):
                self.move(k, descent)
            total = [a + b for a, b in zip(total, self.tensors[k], strict=True)]

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
    """Each of several models on its way to the sum of all others (whose mean asks for the same permutation).

    Scores are kept from round to round: when a model moves, the others compute those anew that see a tensor which moved.
    """

    def __init__(self, several: _Several) -> None:
        self.several, self.models = several, range(several.count)
        self.total = [sum(same[1:], same[0]) for same in zip(*several.tensors, strict=True)]
        pairs = [([t - x for t, x in zip(self.total, model, strict=True)], model) for model in several.tensors]
        self.descents = [Descent(several.graph, several.labels, target, model) for target, model in pairs]
        self.outdated: list[set[int]] = [set() for _ in self.models]

    def turn(self, k: int, sweeps: Iterator[Sequence[str]]) -> bool:
        """Match one model to the sum of the others. Whether it moved."""
        descent = self.descents[k]
        theirs = descent.theirs
        for number in self.outdated[k]:
            descent.retarget(number, self.total[number] - theirs[number])
        self.outdated[k].clear()
        moved = _exhausted(descent, sweeps)
        if changed := descent.moved_blocks():
            ours, theirs = descent.ours, descent.theirs
            self.total = [
                a + b if n in changed else t for n, (t, a, b) in enumerate(zip(self.total, ours, theirs, strict=True))
            ]
            for j in self.models:
                self.outdated[j] |= changed if j != k else set()
        return moved

    def finish(self) -> None:
        """Hand the orders over."""
        for k, descent in enumerate(self.descents):
            self.several.move(k, descent)


def _exhausted(descent: Descent, sweeps: Iterator[Sequence[str]]) -> bool:
    """Sweep until nothing is gained. Whether something moved."""
    return bool([True for names in itertools.takewhile(descent.sweep, sweeps)])
