"""What alignments by activations share: the moments of the features, node by node and copy by copy."""

import abc
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from alignment.activations.collected import node_moments
from alignment.activations.correlation import assign_living, correlation, living, spectrum
from alignment.activations.moments import Moments, NodeMoments
from alignment.assignment import assign
from alignment.base import Alignment, Stats
from alignment.graph import Graph, GroupName, Node, PyTree, admits, indexing

Copy = tuple[int, ...]


class ActivationAlignment(Alignment):
    """An alignment that finds the map of each node from the moments of its features in the reference and in another model.

    A node that indexes others (heads) is matched by assignment: its units are whole groups, to be paired, not mixed, by how
    much alike they can be made. What is inside them is then solved for between paired groups. The reference and nodes that
    index others have orders of units in theta, which `fit` leaves alone.
    """

    needs = (NodeMoments,)

    @abc.abstractmethod
    def solve(self, moments: Moments) -> PyTree:
        """The parameters of the map of one copy of a node, from the moments of two models."""

    def of_permutation(self, index: Int[np.ndarray, " units"]) -> Int[np.ndarray, " units"]:
        """The parameters of a permutation: the index itself, an integer leaf, which no learning mixes."""
        return np.asarray(index, np.int32)

    def check(self, graph: Graph, moments: Mapping[str, Moments]) -> None:
        """Raise ValueError for nodes that the maps do not suit."""

    def scores(self, moments: Moments) -> Float[np.ndarray, "units units"]:
        """How well each unit of the second model (columns) fits each of the first: their correlation."""
        return correlation(moments)

    def likeness(self, group: GroupName, moments: Moments) -> float:
        """How much alike two groups of units can be made: the sum of their correlations under the best of their symmetry.

        Of units, after the best permutation; of principal directions, after the best rotation; canonical correlations for a
        linear group.
        """
        if group in ("permutation", "scale"):
            scores = self.scores(moments)
            return float(scores[np.arange(len(scores)), assign(scores)].sum())
        ours, theirs = np.asarray(moments.covariance, np.float64)
        cross = np.asarray(moments.cross[1], np.float64)
        if group == "orthogonal":
            scale = np.sqrt(np.trace(ours) * np.trace(theirs)) / len(cross)
            return float(np.linalg.svd(cross, compute_uv=False).sum() / max(scale, 1e-30))
        white = [spectrum(c).whitening() for c in (ours, theirs)]
        return float(np.linalg.svd(white[0] @ cross @ white[1], compute_uv=False).sum())

    def init(self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> list:
        """For each model, node -> the parameters of its map, copies in front; the identity for model 0."""
        moments = node_moments(stats, self, graph, models)
        self.check(graph, moments)
        return self.of_moments(graph, moments, len(models))

    def of_moments(self, graph: Graph, moments: Mapping[str, Moments], models: int) -> list:
        """What `init` returns, of the nodes that have moments or have nodes inside that have."""
        theta: list[dict[str, PyTree]] = []
        for k in range(models):
            pair = _Pair(graph, {node: _of_two(m, k) for node, m in moments.items()})
            theta.append(pair.solved(self) if k else pair.identity(self))
        return theta


def solved_nodes(graph: Graph, moments: Mapping[str, Moments]) -> list[str]:
    """The nodes with moments that `solve` is asked for: those that index others are permuted."""
    return [name for name in moments if name not in indexing(graph)]


def check_groups(alignment: Alignment, graph: Graph, nodes: Iterable[str], group: GroupName) -> None:
    """Raise ValueError naming the nodes whose own group does not hold all of `group`, which the alignment's maps are of."""
    outside = [f"{name!r} ({graph.nodes[name].group})" for name in nodes if not admits(graph.nodes[name], group)]
    if outside:
        some = ", ".join(outside[:5]) + (f" and {len(outside) - 5} more" if len(outside) > 5 else "")
        raise ValueError(
            f"{type(alignment).__name__} takes its maps from the {group} group, which changes the function at {some}: "
            "pass approximate=True if that is meant, and verify and re-estimate statistics afterwards"
        )


class _Pair:
    """The moments of the reference and one other model."""

    def __init__(self, graph: Graph, moments: Mapping[str, Moments]):
        self.graph, self.moments = graph, moments
        self.indexing = indexing(graph)
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
                theirs = paired_copy(self.graph, self.orders, node, ours)
                if node.name in self.indexing:
                    found[theirs] = alignment.of_permutation(self._match_groups(alignment, node, ours, theirs))
                elif node.name in self.moments:
                    found[theirs] = alignment.solve(self._between(node, ours, theirs))
            if found:
                theta[node.name] = _stacked(node, found)
        return theta

    def _match_groups(self, alignment: ActivationAlignment, node: Node, ours: Copy, theirs: Copy) -> np.ndarray:
        scores, alive = np.zeros((node.size, node.size)), np.zeros((2, node.size), bool)
        if node.name in self.moments:
            between = self._between(node, ours, theirs)
            scores, alive = scores + alignment.scores(between), living(between)
        for inner in self.graph.nodes.values():
            if inner.index == (*node.index, node.name) and inner.name in self.moments:
                for p, q in np.ndindex(scores.shape):
                    between = self._between(inner, (*ours, p), (*theirs, q))
                    scores[p, q] += alignment.likeness(inner.group, between)
                    alive[[0, 1], [p, q]] |= living(between).any(-1)
        index = assign_living(scores, *alive)
        orders = self.orders.setdefault(node.name, np.broadcast_to(np.arange(node.size), (*node.copies, node.size)).copy())
        orders[theirs] = index
        return index

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


def paired_copy(graph: Graph, orders: Mapping[str, np.ndarray], node: Node, place: Copy) -> Copy:
    """The copy of a node that comes to a place when the nodes it is indexed by are permuted."""
    old: dict[str, int] = {}
    for name, k in zip(node.index, place, strict=True):
        order = orders.get(name)
        outer = tuple(old[i] for i in graph.nodes[name].index) if order is not None else ()
        old[name] = k if order is None else int(order[(*outer, k)])
    return tuple(old.values())


def _of_two(m: Moments, k: int) -> Moments:
    mean, auto, cross = (np.asarray(x)[[0, k]] for x in m[1:])
    return Moments(m.samples, mean, auto, cross)


def _stacked(node: Node, found: Mapping[Copy, PyTree]) -> PyTree:
    """The parameters of all copies as arrays with the copies in front."""
    every = [found[c] for c in np.ndindex(*node.copies)]
    return jax.tree.map(lambda *x: np.stack(x).reshape(*node.copies, *np.shape(x[0])), *every)
