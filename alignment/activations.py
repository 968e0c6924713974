"""What alignments by activations share: the moments of the features, node by node and copy by copy."""

import abc
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from alignment.assignment import assign
from alignment.base import Alignment, Stats, node_moments
from alignment.graph import Graph, GroupName, Node, PyTree
from alignment.moments import Moments, NodeMoments

Copy = tuple[int, ...]


class ActivationAlignment(Alignment):
    """An alignment that finds the map of each node from the moments of its features in the reference and in another model.

    A node that indexes others (heads) is matched by assignment: its units are whole groups, to be paired, not mixed, by how
    much alike they can be made. What is inside them is then solved for between paired groups.
    """

    needs = (NodeMoments,)

    @abc.abstractmethod
    def solve(self, moments: Moments) -> PyTree:
        """The parameters of the map of one copy of a node, from the moments of two models."""

    @abc.abstractmethod
    def of_permutation(self, index: Int[np.ndarray, " units"]) -> PyTree:
        """The parameters of a permutation."""

    def init(self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> list:
        """For each model, node -> the parameters of its map, copies in front; the identity for model 0."""
        moments = node_moments(stats, self, graph, models)
        theta: list[dict[str, PyTree]] = []
        for k in range(len(models)):
            pair = _Pair(graph, {node: _of_two(m, k) for node, m in moments.items()})
            theta.append(pair.solved(self) if k else pair.identity(self))
        return theta


def correlation(moments: Moments) -> Float[np.ndarray, "*copies units units"]:
    """Pearson correlation of the units of the first of two models with those of the second; zero for dead units."""
    deviation = np.sqrt(np.maximum(np.diagonal(np.asarray(moments.covariance, np.float64), axis1=-2, axis2=-1), 0))
    scale = deviation[0][..., :, None] * deviation[1][..., None, :]
    alive = scale > 1e-7 * max(scale.max(initial=0), 1e-30)
    return np.where(alive, np.asarray(moments.cross[1], np.float64) / np.where(alive, scale, 1), 0)


def likeness(group: GroupName, moments: Moments) -> float:
    """How much alike the features of two models are under the best element of a group: the sum of their correlations.

    Of units, after the best permutation; of principal directions, after the best rotation; canonical ones, for a linear group.
    """
    if group in ("permutation", "scale"):
        scores = correlation(moments)
        return float(scores[np.arange(len(scores)), assign(scores)].sum())
    ours, theirs = np.asarray(moments.covariance, np.float64)
    cross = np.asarray(moments.cross[1], np.float64)
    if group == "orthogonal":
        scale = np.sqrt(np.trace(ours) * np.trace(theirs)) / len(cross)
        return float(np.linalg.svd(cross, compute_uv=False).sum() / max(scale, 1e-30))
    return float(np.linalg.svd(_whitening(ours) @ cross @ _whitening(theirs), compute_uv=False).sum())


def _whitening(covariance: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The inverse square root, without the directions that are dead."""
    values, vectors = np.linalg.eigh(covariance)
    alive = values > 1e-6 * max(values.max(initial=0), 1e-30)
    return (vectors * np.where(alive, 1 / np.sqrt(np.where(alive, values, 1)), 0)) @ vectors.T


class _Pair:
    """The moments of the reference and one other model."""

    def __init__(self, graph: Graph, moments: Mapping[str, Moments]):
        self.graph, self.moments = graph, moments
        self.indexing = {name for node in graph.nodes.values() for name in node.index}
        self.orders: dict[str, np.ndarray] = {}  # of the nodes that index others

    def identity(self, alignment: ActivationAlignment) -> dict[str, PyTree]:
        """The parameters that change nothing."""
        nodes = [self.graph.nodes[name] for name in self.moments]
        return {
            n.name: _stacked(n, {c: alignment.of_permutation(np.arange(n.size)) for c in np.ndindex(*n.copies)}) for n in nodes
        }

    def solved(self, alignment: ActivationAlignment) -> dict[str, PyTree]:
        """The parameters of every node that has moments, or has nodes inside that have."""
        theta = {}
        for node in sorted(self.graph.nodes.values(), key=lambda n: len(n.index)):
            found: dict[Copy, PyTree] = {}
            for ours in np.ndindex(*node.copies):
                theirs = self._paired_with(node, ours)
                if node.name in self.indexing:
                    found[theirs] = alignment.of_permutation(self._match_groups(node, ours, theirs))
                elif node.name in self.moments:
                    found[theirs] = alignment.solve(self._between(node, ours, theirs))
            if found:
                theta[node.name] = _stacked(node, found)
        return theta

    def _match_groups(self, node: Node, ours: Copy, theirs: Copy) -> np.ndarray:
        scores = np.zeros((node.size, node.size))
        if node.name in self.moments:
            scores += correlation(self._between(node, ours, theirs))
        for inner in self.graph.nodes.values():
            if inner.index == (*node.index, node.name) and inner.name in self.moments:
                for p, q in np.ndindex(scores.shape):
                    scores[p, q] += likeness(inner.group, self._between(inner, (*ours, p), (*theirs, q)))
        index = assign(scores)
        orders = self.orders.setdefault(node.name, np.broadcast_to(np.arange(node.size), (*node.copies, node.size)).copy())
        orders[theirs] = index
        return index

    def _paired_with(self, node: Node, ours: Copy) -> Copy:
        """The copy of a node in the other model that was matched with ours."""
        theirs: dict[str, int] = {}
        for name, place in zip(node.index, ours, strict=True):
            order = self.orders.get(name)
            outer = tuple(theirs[i] for i in self.graph.nodes[name].index) if order is not None else ()
            theirs[name] = place if order is None else int(order[(*outer, place)])
        return tuple(theirs.values())

    def _between(self, node: Node, ours: Copy, theirs: Copy) -> Moments:
        """The moments of our copy of a node and theirs."""
        fixed = sum(name not in self.graph.nodes for name in node.index)
        m, free = self.moments[node.name], node.copies[fixed:]
        a, b = (node.size * int(np.ravel_multi_index(c[fixed:], free)) if free else 0 for c in (ours, theirs))
        i, j, at = slice(a, a + node.size), slice(b, b + node.size), ours[:fixed]
        mean, auto, cross = (np.asarray(x) for x in m[1:])
        return Moments(
            m.samples,
            np.stack([mean[0][*at, i], mean[1][*at, j]]),
            np.stack([auto[0][*at, i, i], auto[1][*at, j, j]]),
            np.stack([cross[0][*at, i, i], cross[1][*at, i, j]]),
        )


def _of_two(m: Moments, k: int) -> Moments:
    mean, auto, cross = (np.asarray(x)[[0, k]] for x in m[1:])
    return Moments(m.samples, mean, auto, cross)


def _stacked(node: Node, found: Mapping[Copy, PyTree]) -> PyTree:
    """The parameters of all copies as arrays with the copies in front."""
    every = [found[c] for c in np.ndindex(*node.copies)]
    return jax.tree.map(lambda *x: np.stack(x).reshape(*node.copies, *np.shape(x[0])), *every)
