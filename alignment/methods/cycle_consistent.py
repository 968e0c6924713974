"""Cycle-consistent matching: the units of all models into one universe at once, without data."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.assignment import assign_copies
from alignment.base import PermutationAlignment, Stats
from alignment.checks import check_count, check_number
from alignment.graph import Graph, PyTree, path_name
from alignment.labels import NodeAxis
from alignment.maps import NodeMap, transport
from alignment.methods.weight_matching import WeightMatching
from alignment.permutations import Order, after, blocks, inverse, permuted, unmoved
from alignment.weight_distance import weights

Matrices = dict[str, Float[Array | np.ndarray, "models *copies n n"]]
Orders = list[dict[str, Order]]


@dataclass(frozen=True)
class CycleConsistent(PermutationAlignment):
    """Permute all models into a common universe, where each agrees with every other (Crisostomi et al. 2024, "C2M3").

    Maximises F(P) = sum over pairs p < q and tensors of <P_p . W_p, P_q . W_q> over a permutation P_k of every node of every
    model k. A map from model p to model q is P_q^-1 P_p, so maps around a cycle compose to the identity exactly. Frank-Wolfe
    on doubly stochastic matrices: the gradient is assigned for each node and model, and all move together towards those
    permutations by the step that is best on the line, where F is a polynomial whose degree the graph tells. The matrices
    are then rounded by assignment.

    Rounding may lose, so coordinate ascent follows: each model is weight-matched to the sum of the others, until none
    moves. What `WeightMatching` finds is a candidate too, and the best is kept, so F is never below its own. A node that
    indexes others (heads) and what is inside it are relaxed each on its own, as if the others stood still; the ascent
    matches both together, on two levels. A key adds a start from random permutations. No model is the reference of the
    others here, but the universe is numbered as model 0 is. Running statistics take no part.

    Attributes:
        max_iterations: at most this many steps of Frank-Wolfe, and as many rounds of the ascent.
        tolerance: Frank-Wolfe ends at a step that gains no more than this share of F.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> rows = ([1.0, 2.0, 3.0], [3.0, 1.1, 2.0], [2.2, 3.0, 1.0])
        >>> models = [{"up": jnp.array([row]), "down": jnp.array(row)[:, None]} for row in rows]
        >>> graph, matching = alignment.trace(apply, models[0], jnp.ones((1, 1))), alignment.CycleConsistent()
        >>> [model["up"].tolist() for model in matching.init(graph, models)]
        [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
        >>> print(np.concatenate([model["up"] for model in alignment.align(matching, graph, models)]).round(1))
        [[1.  2.  3. ]
         [1.1 2.  3. ]
         [1.  2.2 3. ]]
    """

    max_iterations: int = 100
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        check_count("max_iterations", self.max_iterations)
        check_number("tolerance", self.tolerance)

    def init(self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> Orders:
        """For each model, node -> index of its unit at each place of the universe (*copies, units): identities for model 0."""
        if len(models) < 2:
            return [unmoved(graph) for _ in models]
        universe = Universe(graph, models)
        still = [unmoved(graph) for _ in models]
        starts = [still] if key is None else [still, _random(still, key)]
        relaxed = [universe.frank_wolfe(universe.matrices(s), self.max_iterations, self.tolerance)[0] for s in starts]
        candidates = [WeightMatching().init(graph, models), *map(universe.rounded, relaxed)]
        best = max((universe.ascended(c, self.max_iterations) for c in candidates), key=universe.agreement)
        home = inverse(graph, best[0])
        return [after(graph, orders, home) for orders in best]


class Universe:
    """Where the units of several models meet: the objective and what climbs it."""

    def __init__(self, graph: Graph, models: Sequence[PyTree]):
        self.graph, self.models = graph, [jax.tree.map(np.asarray, model) for model in models]
        self.stacked = jax.tree.map(lambda *x: np.stack(x), *self.models)
        self.degree = 2 * max(_nodes_in_a_block(graph), default=0)

    def matrices(self, orders: Orders) -> Matrices:
        """Permutation matrices of all models, by node."""
        return {name: np.stack([_matrix(o[name]) for o in orders]) for name in self.graph.nodes}

    def rounded(self, matrices: Matrices) -> Orders:
        """The permutations nearest to doubly stochastic matrices."""
        index = {name: assign_copies(np.asarray(m)) for name, m in matrices.items()}
        return [{name: found[k] for name, found in index.items()} for k in range(len(self.models))]

    def agreement(self, orders: Orders) -> float:
        """F of permutations."""
        return float(_slopes(self.graph, self.matrices(orders), self.stacked)[0])

    def frank_wolfe(self, matrices: Matrices, steps: int, tolerance: float) -> tuple[Matrices, list[float]]:
        """Doubly stochastic matrices from which no step gains more than `tolerance` of F, and F before every step."""
        values = []
        for _ in range(steps):
            value, slopes = jax.device_get(_slopes(self.graph, matrices, self.stacked))
            values.append(float(value))
            corner: Matrices = {name: _matrix(assign_copies(slope)) for name, slope in slopes.items()}
            step, gain = self.best_step(matrices, corner)
            if gain <= tolerance * abs(value):
                break
            matrices = {name: m + np.float32(step) * (corner[name] - m) for name, m in matrices.items()}
        return matrices, values

    def best_step(self, start: Matrices, end: Matrices) -> tuple[float, float]:
        """The step in [0, 1] from `start` to `end` at which F is largest, and what it gains: exact, but for rounding.

        F along the line is a polynomial of degree `degree`, known from its values at as many Chebyshev points and one.
        """
        at = (1 - np.cos(np.pi * np.arange(self.degree + 1) / max(self.degree, 1))) / 2
        values = np.asarray(_along(self.graph, start, end, self.stacked, np.float32(at)), np.float64)
        curve = np.polynomial.Chebyshev.fit(at, values, self.degree, domain=[0, 1])
        turns = [
            root.real for root in np.asarray(curve.deriv().roots(), complex) if abs(root.imag) < 1e-6 and 0 < root.real < 1
        ]
        best = max([0.0, 1.0, *turns], key=curve)
        return float(best), float(curve(best) - curve(0.0))

    def ascended(self, orders: Orders, rounds: int) -> Orders:
        """Permutations that no model can improve alone: each in turn is matched to the sum of the others. F never falls."""
        orders = list(orders)
        moved = [self._moved(model, o) for model, o in zip(self.models, orders, strict=True)]
        for _ in range(rounds):
            still = True
            for k, mine in enumerate(moved):
                others = jax.tree.map(lambda *x: sum(x), *moved[:k], *moved[k + 1 :])
                move = WeightMatching().init(self.graph, [others, mine])[1]
                if any(np.any(index != np.arange(index.shape[-1])) for index in move.values()):
                    still, orders[k], moved[k] = False, after(self.graph, orders[k], move), self._moved(mine, move)
            if still:
                break
        return orders

    def _moved(self, model: PyTree, orders: dict[str, Order]) -> PyTree:
        """On the host, floating leaves as float32."""

        def leaf(path: tuple, x: np.ndarray) -> np.ndarray:
            x = x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
            return permuted(self.graph, path_name(path), x, orders)

        return jax.tree_util.tree_map_with_path(leaf, model)


def _matrix(index: Order) -> np.ndarray:
    return np.eye(index.shape[-1], dtype=np.float32)[index]


def _random(orders: Orders, key: Array) -> Orders:
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return [{name: rng.permuted(index, axis=-1) for name, index in model.items()} for model in orders]


def _nodes_in_a_block(graph: Graph) -> list[int]:
    """For each block of each tensor how many of its axes carry a node: its degree in the matrices."""
    labels = [found for path, shape in graph.shapes.items() for found, _ in blocks(graph, path, np.empty(shape, bool))]
    return [sum(isinstance(label, NodeAxis) for label in block) for block in labels]


def _objective(graph: Graph, matrices: Matrices, stacked: PyTree) -> Array:
    """F as half of |sum_k P_k . W_k|^2 - sum_k |P_k . W_k|^2."""

    def moved(push: Matrices, model: PyTree) -> dict[str, Array]:
        return weights(transport(graph, {name: NodeMap(p, p.mT) for name, p in push.items()}, model))

    each = jax.vmap(moved)(matrices, stacked).values()
    return sum((jnp.sum(jnp.square(x.sum(0))) - jnp.sum(jnp.square(x)) for x in each), jnp.float32(0)) / 2


_slopes = jax.jit(jax.value_and_grad(_objective, argnums=1), static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _along(graph: Graph, start: Matrices, end: Matrices, stacked: PyTree, at: Array) -> Array:
    def value(t: Array) -> Array:
        return _objective(graph, jax.tree.map(lambda a, b: a + t * (b - a), start, end), stacked)

    return jax.lax.map(value, at)
