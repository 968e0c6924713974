"""Positive scaling: the factors that ReLU networks may carry from unit to unit, found together with a permutation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.base import Alignment, PermutationAlignment, Stats
from alignment.blocks import Bare, axis_of, each_block
from alignment.checks import check_count
from alignment.finite import check_finite
from alignment.graph import Graph, Node, PyTree, admits, weights_of
from alignment.labels import NodeAxis
from alignment.maps import Maps, NodeMap, permutation
from alignment.methods.by_activations import paired_copy
from alignment.methods.starts import orders_of
from alignment.methods.weight_matching import WeightMatching
from alignment.permutations import Weights, blocks, permuted

Factors = Mapping[str, Float[np.ndarray, "*copies units"]]


@dataclass(frozen=True)
class Scale(Alignment):
    """Permute, then multiply every unit by the positive factor that brings the weights closest to the reference's.

    ReLU lets a factor s > 0 pass: what makes a unit is multiplied by s, what reads it by 1/s, and the function stays (Neyshabur
    et al. 2015, "Path-SGD"). Coordinate descent on sum over tensors of |A - T(B)|^2, one node at a time. With the others held,
    each unit has a problem of its own, a s^2 - 2 b s + c / s^2 - 2 d / s, with a = |B_out|^2, b = <A_out, B_out>, c = |B_in|^2,
    d = <A_in, B_in>. It is not convex, but its stationary points are the roots of a quartic, so the best of them is found
    exactly. A tensor with the node on two axes couples its units; there the best of the step and its halvings is taken, if it
    lowers the objective at all. So that never rises in a sweep; the result is a local optimum.

    Nodes whose group holds no scaling are only permuted, so a network without ReLU is too. Theta has for each model and node
    `order`, the unit put at each place, and where scaling is allowed and the model not the reference `log_scale`, the logarithm
    of the factor at each place: a floating leaf, which `fit` can learn.

    Attributes:
        start: what finds the permutations.
        max_sweeps: at most this many passes over all nodes.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> a = {"up": jnp.array([[1.0, 2.0]]), "down": jnp.array([[1.0], [2.0]])}
        >>> b = {"up": jnp.array([[4.0, 1.0]]), "down": jnp.array([[1.0], [1.0]])}
        >>> graph = alignment.trace(apply, a, jnp.ones((1, 1)))
        >>> aligned = alignment.align(alignment.Scale(), graph, [a, b])[1]
        >>> aligned["up"].round(3).tolist(), aligned["down"].round(3).tolist()  # exchanged; 4 and 1 scaled to 2 and 2
        ([[1.0, 2.0]], [[1.0], [2.0]])
    """

    start: Alignment = field(default_factory=WeightMatching)
    max_sweeps: int = 100

    def __post_init__(self) -> None:
        if not isinstance(self.start, PermutationAlignment):
            raise ValueError(f"Scale starts from an alignment by permutations (PermutationAlignment), got {self.start!r}")
        check_count("max_sweeps", self.max_sweeps, 0)

    @property
    def needs(self) -> tuple[type, ...]:
        """What the start needs."""
        return self.start.needs

    def init(self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> list:
        """For each model, node -> {"order", "log_scale"}, each (*copies, units)."""
        orders = orders_of(self.start, graph, models, stats=stats, key=key)
        weights = [_permuted_weights(graph, model, order) for model, order in zip(models, orders, strict=True)]
        theta = [{name: {"order": order} for name, order in model.items()} for model in orders]
        for model, theirs, order in zip(theta[1:], weights[1:], orders[1:], strict=True):
            for name, factors in self._factors(graph, weights[0], theirs).items():
                node, log_scale = graph.nodes[name], np.empty(factors.shape, np.float32)
                for place in np.ndindex(*node.copies):  # theta speaks of copies where they were before anything moved
                    log_scale[paired_copy(graph, order, node, place)] = np.log(factors[place])
                model[name]["log_scale"] = log_scale
        return theta

    def maps(self, theta: list, graph: Graph) -> Sequence[Maps]:
        """Scaled permutations: push = diag(s) P, pull = P^T diag(1/s). Raises ValueError unless theta is finite (or traced)."""
        check_finite(theta, "theta")
        return [{name: _scaled_permutation(**leaf) for name, leaf in model.items()} for model in theta]

    def _factors(self, graph: Graph, ours: Weights, theirs: Weights) -> Factors:
        """The factors of every node that may be scaled, at the reference's places."""
        nodes = [node for node in graph.nodes.values() if admits(node, "scale")]
        factors = {node.name: np.ones((*node.copies, node.size)) for node in nodes}
        touching = {node.name: [path for path in graph.touching(node.name) if path in ours] for node in nodes}
        before = distance(ours, theirs)
        for _ in range(self.max_sweeps):
            for node in nodes:
                tensors = {path: (ours[path], theirs[path]) for path in touching[node.name]}
                step, moved = _best_step(graph, node, tensors)
                factors[node.name] *= step
                theirs = theirs | moved
            now = distance(ours, theirs)
            if before - now <= 1e-6 * now:
                break
            before = now
        return factors


def _scaled_permutation(order: Array, log_scale: Array | None = None) -> NodeMap:
    m = permutation(order)
    if log_scale is None:
        return m
    factor = jnp.exp(jnp.asarray(log_scale))[..., :, None]
    return NodeMap(m.push * factor, (m.push / factor).mT)


def _permuted_weights(graph: Graph, model: PyTree, orders: Mapping[str, np.ndarray]) -> Weights:
    return {path: permuted(graph, path, np.asarray(x, np.float64), orders) for path, x in weights_of(model).items()}


def distance(ours: Weights, theirs: Weights) -> float:
    """The squared distance of two networks' weights, in float64."""
    return float(sum(np.sum(np.square(ours[path] - x)) for path, x in theirs.items()))


def _best_step(graph: Graph, node: Node, tensors: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, Weights]:
    """Factors of one node that lower the objective, and the tensors they leave; ones where nothing is gained."""
    ours = {path: a for path, (a, _) in tensors.items()}
    theirs = {path: b for path, (_, b) in tensors.items()}
    best = _best_factors(*_coefficients(graph, node, tensors))
    if np.abs(np.log(best)).max(initial=0) < 1e-7:  # less than float32 can tell
        return np.ones_like(best), {}
    coupled = any(len(axes) > 1 for axes in graph.touching(node.name).values())
    steps = [best ** (0.5**k) for k in range(6 if coupled else 1)]
    moved = [{path: _scaled(graph, path, b, {node.name: step}) for path, b in theirs.items()} for step in steps]
    distances = [distance(ours, m) for m in moved]
    k = int(np.argmin(distances))
    return (steps[k], moved[k]) if distances[k] < distance(ours, theirs) else (np.ones_like(best), {})


def _coefficients(graph: Graph, node: Node, tensors: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The a, b, c and d of every unit: (4, *copies, units)."""
    total = np.zeros((4, *node.copies, node.size))
    for path, pair in tensors.items():
        for (labels, ours), (_, theirs) in zip(*(blocks(graph, path, x) for x in pair), strict=True):
            for axes, role in _places(graph, node.name, labels):
                sums = [np.einsum(theirs, [*range(ours.ndim)], x, [*range(ours.ndim)], axes) for x in (theirs, ours)]
                total[slice(0, 2) if role == "out" else slice(2, 4)] += np.stack(sums)
    return total


def _best_factors(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> Float[np.ndarray, "*copies units"]:
    """The s > 0 with the least a s^2 - 2 b s + c / s^2 - 2 d / s; 1 for a unit that nothing makes or nothing reads.

    With s = (c/a)^(1/4) t the derivative is zero where t^4 - p t^3 + q t - 1 is: the eigenvalues of its companion matrix.
    """
    found = (a > 0) & (c > 0)
    a, c = np.where(found, a, 1), np.where(found, c, 1)
    size = (c / a) ** 0.25
    companion = np.zeros((*a.shape, 4, 4))
    companion[..., [1, 2, 3], [0, 1, 2]] = 1
    companion[..., 0, 0], companion[..., 0, 2], companion[..., 0, 3] = b / (a * size), -d / (a * size**3), 1
    roots = np.linalg.eigvals(companion)
    real = (np.abs(roots.imag) < 1e-6 * np.abs(roots)) & (roots.real > 0)
    s = np.where(real, roots.real, 1) * size[..., None]
    a, b, c, d = (x[..., None] for x in (a, b, c, d))
    value = np.where(real, a * s**2 - 2 * b * s + c / s**2 - 2 * d / s, np.inf)
    best = np.take_along_axis(s, value.argmin(-1, keepdims=True), -1)[..., 0]
    return np.where(found, best, 1)


def _scaled(graph: Graph, path: str, weight: np.ndarray, factors: Factors) -> np.ndarray:
    """A tensor with what makes a unit multiplied by its factor and what reads it divided."""

    def change(labels: Sequence[Bare], block: np.ndarray) -> np.ndarray:
        for name, factor in factors.items():
            for axes, role in _places(graph, name, labels):
                shape = [1] * block.ndim
                for axis in axes:
                    shape[axis] = block.shape[axis]
                aligned = factor.transpose(np.argsort(axes)).reshape(shape)
                block = block * (aligned if role == "out" else 1 / aligned)
        return block

    return each_block(graph.axes[path], weight, change)


def _places(graph: Graph, name: str, labels: Sequence[Bare]) -> Iterator[tuple[list[int], str]]:
    """Where a node stands in a block: the axes of its index and of its units, and the role, for each time it does."""
    for d, label in enumerate(labels):
        if isinstance(label, NodeAxis) and label.node == name:
            yield [*(axis_of(labels, i) for i in graph.nodes[name].index), d], label.role
