"""Weight matching: permutations that make the weights themselves agree, without data."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.assignment import assign, assign_two_level
from alignment.base import PermutationAlignment, Stats
from alignment.blocks import axis_of
from alignment.graph import STATISTICS, Graph, Node, PyTree, flatten
from alignment.labels import NodeAxis
from alignment.permutations import Order, Weights, after, blocks, permuted, unmoved


@dataclass(frozen=True)
class WeightMatching(PermutationAlignment):
    """Permute each model to maximise its inner product with the reference, one node at a time.

    Coordinate descent on sum over tensors of <A, P . B>: with all other nodes held, the best permutation of one node is a
    linear assignment on scores summed over every axis of every tensor that carries it (Ainsworth et al. 2022, "Git
    Re-Basin", algorithm 1). Where a tensor carries a node on two axes, each axis is scored with the other as it is, and the
    permutation is only taken if the objective itself rises. A node that indexes others (heads) is matched together with what
    is inside it, on two levels. So the objective never falls; the result is a local optimum and depends on the order of the
    nodes: the network's own, or a random one in each sweep if a key is given.

    Attributes:
        max_sweeps: at most this many passes over all nodes.
        exclude: paths matching this expression take no part in the scores: running statistics are not weights.
    """

    max_sweeps: int = 100
    exclude: str = STATISTICS

    def init(self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> list:
        """For each model, node -> index of the unit put at each place (*copies, units); the identity for model 0."""
        reference, *others = [self._weights(m) for m in models]
        keys = [None] * len(others) if key is None else list(jax.random.split(key, len(others)))
        return [unmoved(graph), *(self._match(graph, reference, w, k) for w, k in zip(others, keys, strict=True))]

    def _weights(self, model: PyTree) -> dict[str, np.ndarray]:
        leaves = flatten(model).items()
        kept = {path: x for path, x in leaves if not re.search(self.exclude, path) and jnp.issubdtype(x.dtype, jnp.floating)}
        return {path: np.asarray(x, np.float32) for path, x in kept.items()}

    def _match(self, graph: Graph, ours: Weights, theirs: Weights, key: Array | None) -> dict[str, Order]:
        orders, places = unmoved(graph), {name: [p for p in graph.touching(name) if p in ours] for name in graph.nodes}
        rng = None if key is None else np.random.default_rng(np.asarray(jax.random.key_data(key)))
        names = list(graph.nodes)
        for _ in range(self.max_sweeps):
            moved = False
            for name in names if rng is None else rng.permutation(names):
                pair = _Pair(graph, graph.nodes[name], {p: (ours[p], theirs[p]) for p in places[name]})
                move = pair.best_move()
                if move is not None:
                    moved, orders = True, after(graph, orders, move)
                    theirs = theirs | pair.moved(move)
            if not moved:
                break
        return orders


@dataclass(frozen=True)
class _Pair:
    """The tensors that carry one node, ours and theirs by path."""

    graph: Graph
    node: Node
    tensors: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def best_move(self) -> dict[str, Order] | None:
        """The best orders of the node and what it indexes, or None if they do not raise the objective by more than rounding."""
        scores = self._scores()
        move = {self.node.name: _each_copy(assign, scores)}
        rounding = 1e-7 * np.abs(scores).max(initial=0) * scores.shape[-1]
        candidates = [(self._gain(move, scores), 0, move)]
        if inner := [n for n in self.graph.nodes.values() if n.index == (*self.node.index, self.node.name)]:
            joint = self._two_level(inner)
            candidates.append((self._gain(joint), 1, joint))
        gain, _, move = max(candidates, key=lambda c: c[:2])
        return move if gain > rounding else None

    def moved(self, move: Mapping[str, Order]) -> Weights:
        """Their tensors after a move."""
        return {path: permuted(self.graph, path, theirs, move) for path, (_, theirs) in self.tensors.items()}

    def _gain(self, move: Mapping[str, Order], scores: np.ndarray | None = None) -> float:
        if scores is not None and self._stands_once():
            rows = np.take_along_axis(scores, move[self.node.name][..., None], -1)
            return float(rows.sum() - np.trace(scores, axis1=-2, axis2=-1).sum())
        # a tensor that carries the node twice moves on both axes at once: the scores only approximate its share
        moved = self.moved(move)
        return float(sum(np.vdot(ours, moved[path] - theirs) for path, (ours, theirs) in self.tensors.items()))

    def _stands_once(self) -> bool:
        labels = [labels for path, (ours, _) in self.tensors.items() for labels, _ in blocks(self.graph, path, ours)]
        return all(sum(isinstance(x, NodeAxis) and x.node == self.node.name for x in block) <= 1 for block in labels)

    def _scores(self) -> Float[np.ndarray, "*copies units units"]:
        """How well each of their units fits each of our places, with all else as it is."""
        node, total = self.node, np.zeros((*self.node.copies, self.node.size, self.node.size))
        for a, b in self._arranged((*node.index, node.name)):
            total += a @ b.mT
        return total

    def _two_level(self, inner: Sequence[Node]) -> dict[str, Order]:
        """Orders of the node and of the nodes inside each of its units."""
        node, names = self.node, [n.name for n in inner]
        direct = np.zeros((*node.copies, node.size, node.size))
        for a, b in self._arranged((*node.index, node.name), without=names):
            direct += a @ b.mT
        within = [np.zeros((*node.copies, node.size, node.size, n.size, n.size)) for n in inner]
        for total, child in zip(within, inner, strict=True):
            for a, b in self._arranged((*node.index, node.name, child.name)):
                total += np.einsum("...hdr,...ger->...hgde", a, b)
        orders = {n.name: np.empty((*n.copies, n.size), int) for n in (node, *inner)}
        for copy in np.ndindex(*node.copies):
            orders[node.name][copy], found = assign_two_level(direct[copy], [w[copy] for w in within])
            for name, order in zip(names, found, strict=True):
                orders[name][copy] = order
        return orders

    def _arranged(self, names: Sequence[str], without: Iterable[str] = ()) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The blocks of both models that carry all these nodes, with their axes in front, once for each axis of the last."""
        for path, pair in self.tensors.items():
            for (labels, a), (_, b) in zip(*(blocks(self.graph, path, x) for x in pair), strict=True):
                present = [label.node if isinstance(label, NodeAxis) else label.name for label in labels]
                if not set(names) <= set(present) or set(without) & set(present):
                    continue
                front = [axis_of(labels, n) for n in names[:-1]]
                for last in [d for d, name in enumerate(present) if name == names[-1]]:
                    yield _in_front(a, [*front, last]), _in_front(b, [*front, last])


def _in_front(block: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """These axes in front, all others as one."""
    front = np.moveaxis(block, axes, range(len(axes)))
    return front.reshape(*front.shape[: len(axes)], math.prod(front.shape[len(axes) :]))


def _each_copy(solve: Callable[[np.ndarray], np.ndarray], scores: Float[np.ndarray, "*copies n n"]) -> Order:
    solved = [solve(s) for s in scores.reshape(-1, *scores.shape[-2:])]
    return np.stack(solved).reshape(scores.shape[:-1])
