"""Group matching: every node by the element of its own group that makes the weights agree, without data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.assignment import assign
from alignment.base import Alignment, Stats
from alignment.checks import check_count
from alignment.finite import check_finite
from alignment.graph import Graph, GroupName, Node, PyTree
from alignment.maps import Maps, NodeMap, permutation
from alignment.methods.straight_through import hard_permutation, latent_scores
from alignment.orthogonal import nearest_orthogonal, polar
from alignment.weight_distance import agreement, agreement_slopes

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

    Example:
        >>> apply = lambda v, x: jnp.tanh((x @ v["up"]) @ v["mid"]) @ v["down"]
        >>> a = {"up": jnp.eye(2), "mid": jnp.eye(2, 3), "down": jnp.ones((3, 1))}
        >>> turn, order = jnp.array([[0.0, -1.0], [1.0, 0.0]]), jnp.array([2, 0, 1])
        >>> b = {"up": a["up"] @ turn, "mid": (turn.T @ a["mid"])[:, order], "down": a["down"][order]}
        >>> graph = alignment.trace(apply, a, jnp.ones((1, 2)))
        >>> {name: node.group for name, node in graph.nodes.items()}
        {'up': 'linear', 'mid': 'permutation'}
        >>> aligned = alignment.align(alignment.GroupMatching(), graph, [a, b])[1]
        >>> all(np.allclose(aligned[path], a[path], atol=1e-5) for path in a)  # turned and permuted back
        True
    """

    max_sweeps: int = 100
    learn_permutations: bool = False

    def __post_init__(self) -> None:
        check_count("max_sweeps", self.max_sweeps, 0)

    def init(self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> list:
        """For each model node -> its parameter (*copies, units, units), or (*copies, units) for a fixed permutation."""
        problems = [_Pair(graph, models[0], model) for model in models[1:]]
        return [{}, *(self._theta(pair, pair.solved(self.max_sweeps)) for pair in problems)]

    def maps(self, theta: list, graph: Graph) -> list[Maps]:
        """A map of each node's group. Raises ValueError unless theta is finite (or traced)."""
        check_finite(theta, "theta")
        return [{name: _map(graph.nodes[name].group, x) for name, x in model.items()} for model in theta]

    def _theta(self, pair: "_Pair", found: Matrices) -> dict[str, Array]:
        scores = pair.scores(found) if self.learn_permutations else {}
        return {name: self._parameter(pair.graph.nodes[name], push, scores.get(name)) for name, push in found.items()}

    def _parameter(self, node: Node, push: np.ndarray, scores: np.ndarray | None) -> Array:
        if node.group in ("orthogonal", "linear"):
            return jnp.asarray(push, jnp.float32)
        order = push.argmax(-1)
        return jnp.asarray(order, jnp.int32) if scores is None else jnp.asarray(latent_scores(scores, order), jnp.float32)


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
            return hard_permutation(x)


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
        return jax.device_get(agreement_slopes(self.graph, matrices, self.ours, self.theirs))

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


_agreement = jax.jit(agreement, static_argnums=0)
