"""Group matching: every node by the element of its own group that makes the weights agree, without data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.assignment import assign
from alignment.base import Alignment, Stats
from alignment.graph import Graph, GroupName, Node, PyTree
from alignment.maps import Maps, NodeMap, permutation, transport
from alignment.orthogonal import nearest_orthogonal
from alignment.procrustes import polar
from alignment.weight_distance import weights

Matrices = dict[str, np.ndarray]  # node -> (*copies, units, units)


@dataclass(frozen=True)
class GroupMatching(Alignment):
    """Units that can only be exchanged are exchanged, what can be rotated is rotated, by the weights alone.

    Coordinate descent on sum over tensors of <A, T(B)>, as in `WeightMatching`, but with the best element of each node's own
    group: an assignment for permutations, the polar factor of the scores for orthogonal nodes (the residual stream of a
    network that was folded by `fold`) and for linear ones (queries and keys, values and outputs of a head), of which the
    orthogonal part is taken. Heads are assigned by what the best maps inside them are worth. The objective never falls
    but for rounding.

    Theta is a start for learning: matrices of orthogonal nodes are projected onto the nearest orthogonal one, those of linear
    nodes are free and pulled back by their inverses, permutations are scores that are assigned in the forward pass and passed
    straight through in the backward one, if `learn_permutations` (Theus et al. 2025, "Generalized Linear Mode Connectivity
    for Transformers").

    Attributes:
        max_sweeps: at most this many passes over all nodes.
        learn_permutations: whether permutations are learned too, or stay as they were found.
    """

    max_sweeps: int = 100
    learn_permutations: bool = False

    def init(self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> list:
        """For each model node -> its parameter (*copies, units, units), or (*copies, units) for a fixed permutation."""
        problems = [_Pair(graph, models[0], model) for model in models[1:]]
        return [{}, *(self._theta(pair, pair.solved(self.max_sweeps)) for pair in problems)]

    def maps(self, theta: list, graph: Graph) -> list[Maps]:
        """A map of each node's group."""
        return [{name: _map(graph.nodes[name].group, x) for name, x in model.items()} for model in theta]

    def _theta(self, pair: "_Pair", found: Matrices) -> dict[str, Array]:
        scores = pair.scores(found) if self.learn_permutations else {}
        return {name: self._parameter(pair.graph.nodes[name], push, scores.get(name)) for name, push in found.items()}

    def _parameter(self, node: Node, push: np.ndarray, scores: np.ndarray | None) -> Array:
        if node.group in ("orthogonal", "linear"):
            return jnp.asarray(push, jnp.float32)
        if scores is None:
            return jnp.asarray(push.argmax(-1), jnp.int32)
        deviation = scores.std(axis=(-2, -1), keepdims=True)
        # what was found keeps its places with a margin, also where several nodes together were better than each alone
        return jnp.asarray(scores / np.maximum(deviation, 1e-12) + push, jnp.float32)


def _map(group: GroupName, x: Array) -> NodeMap:
    match group:
        case "orthogonal":
            q = nearest_orthogonal(x)
            return NodeMap(q, q.mT)
        case "linear":
            return NodeMap(x, jnp.linalg.inv(x))
        case _ if jnp.issubdtype(x.dtype, jnp.integer):
            return permutation(x)
        case _:
            push = straight_through(x)
            return NodeMap(push, push.mT)


def straight_through(scores: Float[Array, "*copies n n"]) -> Float[Array, "*copies n n"]:
    index = jax.pure_callback(
        lambda s: (
            np.stack([assign(x) for x in np.asarray(s).reshape(-1, *s.shape[-2:])]).reshape(s.shape[:-1]).astype(np.int32)
        ),
        jax.ShapeDtypeStruct(scores.shape[:-1], jnp.int32),
        jax.lax.stop_gradient(scores),
    )
    return jax.nn.one_hot(index, scores.shape[-1], dtype=jnp.float32) + (scores - jax.lax.stop_gradient(scores))


class _Pair:
    """The reference and another model."""

    def __init__(self, graph: Graph, ours: PyTree, theirs: PyTree):
        self.graph, self.ours, self.theirs = graph, ours, theirs
        self.inside = {name: [n.name for n in graph.nodes.values() if n.index and n.index[-1] == name] for name in graph.nodes}

    def solved(self, max_sweeps: int) -> Matrices:
        """The matrices that no node alone can improve."""
        nodes = self.graph.nodes.values()
        found = {n.name: np.broadcast_to(np.eye(n.size, dtype=np.float32), (*n.copies, n.size, n.size)) for n in nodes}
        best = self.objective(found)
        for _ in range(max_sweeps):
            before = found
            for node in nodes:
                new = found | (self._groups(node, found) if self.inside[node.name] else self._node(node, found))
                # near the optimum a rotation still improves where the objective, in float32, cannot show it
                if (value := self.objective(new)) >= best - 1e-6 * abs(best):
                    found, best = new, max(value, best)
            if max((float(np.abs(m - before[name]).max()) for name, m in found.items()), default=0.0) < 1e-5:
                break
        return found

    def objective(self, matrices: Matrices) -> float:
        """The sum over all tensors of <A, T(B)>."""
        return float(_agreement(self.graph, matrices, self.ours, self.theirs))

    def scores(self, matrices: Matrices) -> Matrices:
        """The derivative of the objective by each matrix: what each unit would be worth at each place."""
        return jax.device_get(_slopes(self.graph, matrices, self.ours, self.theirs))

    def _node(self, node: Node, found: Matrices) -> Matrices:
        scores = self.scores(found)[node.name].reshape(-1, node.size, node.size)
        best = [_best(node.group, s).matrix for s in scores]
        return {node.name: np.stack(best).reshape(*node.copies, node.size, node.size).astype(np.float32)}

    def _groups(self, node: Node, found: Matrices) -> Matrices:
        """A node and the nodes inside each of its units: a unit is worth at a place what the best maps inside it are worth.

        With the units moved round by s places, the scores of what is inside unit q are those for place q + s.
        """
        n = node.size
        new = {name: np.array(found[name]) for name in (node.name, *self.inside[node.name])}
        turned = [self.scores(found | {node.name: _turn(node, s)}) for s in range(n)]
        direct = self.scores(found)[node.name]
        for copy in np.ndindex(*node.copies):
            worth, inner = np.array(direct[copy], np.float64), {}
            for name in self.inside[node.name]:
                child = self.graph.nodes[name]
                for place, unit in np.ndindex(n, n):
                    scores = turned[(place - unit) % n][name][(*copy, unit)]
                    inner[name, place, unit] = best = _best(child.group, scores)
                    worth[place, unit] += best.value - np.vdot(scores, found[name][(*copy, unit)])
            index = assign(worth)
            new[node.name][copy] = np.eye(n)[index]
            for name in self.inside[node.name]:
                for place, unit in enumerate(index):
                    new[name][(*copy, unit)] = inner[name, place, unit].matrix
        return new


class _Best(NamedTuple):
    matrix: np.ndarray
    value: float


def _best(group: GroupName, scores: Float[np.ndarray, "n n"]) -> _Best:
    """The element of a group with the largest inner product with the scores; of linear maps, the best rotation."""
    matrix = polar(scores) if group in ("orthogonal", "linear") else np.eye(len(scores))[assign(scores)]
    return _Best(matrix, float(np.vdot(scores, matrix)))


def _turn(node: Node, places: int) -> np.ndarray:
    turned = np.roll(np.eye(node.size, dtype=np.float32), places, axis=0)
    return np.broadcast_to(turned, (*node.copies, node.size, node.size))


def _inner_product(graph: Graph, matrices: Mapping[str, Array], ours: PyTree, theirs: PyTree) -> Array:
    maps = {name: NodeMap(m, jnp.asarray(m).mT) for name, m in matrices.items()}
    moved, ours = weights(transport(graph, maps, theirs)), weights(ours)
    return sum((jnp.vdot(ours[path], x) for path, x in moved.items()), jnp.float32(0))


_agreement = jax.jit(_inner_product, static_argnums=0)
_slopes = jax.jit(jax.grad(_inner_product, argnums=1), static_argnums=0)
