"""The loss of an alignment: an objective between the aligned models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.base import Alignment, maps_of
from alignment.checks import check_kinds
from alignment.graph import Graph, PyTree
from alignment.maps import transport
from npmerge.arithmetic import between, mean
from npmerge.objectives.base import Apply, Check, Objective
from npmerge.objectives.losses import OfObjective
from npmerge.sharding import gathered
from npmerge.stack import Stack, check_stack


@dataclass(frozen=True)
class LineLoss(OfObjective):
    """`loss(theta, stack, batch, key=)`: the objective at a random point of the line from the reference to each other model.

    `along_line` makes it. Without a key the point is the middle of the interval, so that held-out losses can be compared.

    Attributes:
        alignment: whose theta is learned.
        graph: of the networks.
        apply: the network.
        objective: what is minimised.
        interval: the ends of where points are drawn, 0 the reference.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> a = {"w": jnp.eye(2), "u": 4 * jnp.eye(2)}
        >>> b = {"w": a["w"][:, ::-1], "u": a["u"][::-1]}  # its units in another order
        >>> way, graph = alignment.WeightMatching(), nm.trace(apply, a, jnp.eye(2))
        >>> loss = nm.along_line(way, graph, apply, nm.CrossEntropy(), interval=(0.5, 0.5))
        >>> value = loss(way.init(graph, [a, b]), nm.stack_models([a, b]), (jnp.eye(2), np.array([0, 1])))
        >>> f"{value:.2f}"  # half-way between the aligned models; 0.69 without
        '0.02'
    """

    alignment: Alignment
    graph: Graph
    apply: Apply
    objective: Objective
    interval: tuple[float, float]

    def __call__(self, theta: PyTree, stack: Stack | None, batch: Any, *, key: Array | None = None) -> Float[Array, ""]:
        """The mean over the other models of the objective at one point of their lines."""
        models = self._models(stack)
        low, high = self.interval
        t = jnp.float32((low + high) / 2) if key is None else jax.random.uniform(key, (), jnp.float32, low, high)
        maps = maps_of(self.alignment, self.graph, theta, len(models))
        moved = [transport(self.graph, m, v) for m, v in zip(maps, models, strict=True)]
        points = [between(models[0], other, t) for other in moved[1:]]
        losses = [self.objective(self.apply, gathered(point), stack, batch) for point in points]
        return mean(losses)

    def checker(self, theta: PyTree, stack: Stack | None, batch: Any) -> Check:
        """A check for batches like this one: it raises ValueError for those that cannot be learned from."""
        return self.objective.checker(self.apply, jax.eval_shape(self._models, stack)[0], stack, batch)

    def check_theta(self, theta: PyTree, stack: Stack | None) -> None:
        """Raise ValueError unless there is a line, and theta is of these models."""
        maps_of(self.alignment, self.graph, theta, len(jax.eval_shape(self._models, stack)))

    def _models(self, stack: Stack | None) -> list[PyTree]:
        models = check_stack(stack).models()
        if len(models) < 2:
            raise ValueError("a line needs two models at least: got a stack of 1")
        return models


def along_line(
    alignment: Alignment, graph: Graph, apply: Apply, objective: Objective, *, interval: tuple[float, float] = (0.0, 1.0)
) -> LineLoss:
    """The loss of an alignment's theta at random points between the reference and the aligned models.

    (1 - t) A + t T(B) with t ~ U(interval) in each step of `fit(..., key=)`: the random-path loss of Pena et al. 2023 for (0,
    1), their midpoint loss for (0.5, 0.5); Theus et al. 2025 draw from (0.4, 0.6). To learn coefficients as well, fit the loss
    of `Aligned(alignment, Learned(...), graph)` instead.

    Raises:
        ValueError: arguments of other kinds, an interval outside [0, 1].

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> a = {"w": jnp.eye(2), "u": 4 * jnp.eye(2)}
        >>> b = {"w": a["w"][:, ::-1], "u": a["u"][::-1]}  # its units in another order
        >>> graph, stack, batch = nm.trace(apply, a, jnp.eye(2)), nm.stack_models([a, b]), (jnp.eye(2), np.array([0, 1]))
        >>> way = alignment.SoftPermutation()
        >>> loss = nm.along_line(way, graph, apply, nm.CrossEntropy())
        >>> print(loss(way.init(graph, [a, b]), stack, batch, key=jax.random.key(0)) < 0.69)
        True
    """
    call = "along_line takes (alignment, graph, apply, objective)"
    check_kinds(call, (alignment, Alignment), (graph, Graph), (apply, Callable), (objective, Objective))
    ends = tuple(interval) if isinstance(interval, Sequence) else ()
    if len(ends) != 2 or not 0 <= ends[0] <= ends[1] <= 1:
        raise ValueError(f"interval must be two numbers, ordered and within [0, 1], got {interval}")
    return LineLoss(alignment, graph, apply, objective, ends)
