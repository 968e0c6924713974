"""Weighted sums of losses."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.checks import kind_of
from alignment.graph import PyTree
from npmerge.masks import weight_of
from npmerge.objectives.base import Check, Loss, Objective, Term
from npmerge.objectives.terms import all_of, check_equal, check_weights, scaled, weighted
from npmerge.stack import Stack


@dataclass(frozen=True)
class LossSum:
    """`loss(theta, stack, batch)`, with a key for those terms that draw at random: sum_i w_i loss_i. `weighted_sum` makes it.

    Attributes:
        losses: functions of (theta, stack, batch).
        weights: w_i, one each if None.

    Raises:
        ValueError: anything that is no loss, another number of weights.

    Example:
        >>> loss = nm.weighted_sum((lambda theta, stack, batch: theta, lambda theta, stack, batch: theta**2), (1.0, 10.0))
        >>> print(loss(jnp.float32(3), None, ()), loss.weights)
        93.0 (1.0, 10.0)
    """

    losses: tuple[Loss, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        losses = tuple(self.losses) if isinstance(self.losses, Sequence) else ()
        if not losses or not all(callable(loss) and not isinstance(loss, type | Objective) for loss in losses):
            got = ", ".join(map(kind_of, losses)) or kind_of(self.losses)
            raise ValueError(f"weighted_sum takes losses such as weight_space(merge, apply, objective), got {got}")
        object.__setattr__(self, "losses", losses)
        check_weights(self)
        check_equal("weighted_sum", "losses", losses, self.weights)

    def __call__(self, theta: PyTree, stack: Stack | None, batch: Any, *, key: Array | None = None) -> Float[Array, ""]:
        """The weighted sum."""
        values = [loss(theta, stack, batch, **_drawn(loss, key)) for loss in self.losses]
        return weighted(values, self.weights or (1.0,) * len(values))

    def terms(self, theta: PyTree, stack: Stack | None, batch: Any) -> list[Term]:
        """Those of all losses (`Objective.terms`)."""

        def of(loss: Any) -> list[Term]:
            if hasattr(loss, "terms"):
                return loss.terms(theta, stack, batch)
            return [(loss(theta, stack, batch), self.weight(batch) if self.reads_batches else jnp.float32(1))]

        return scaled([of(loss) for loss in self.losses], self.weights or (1.0,) * len(self.losses))

    @property
    def masks(self) -> bool:
        """Whether all that read batches heed masks."""
        return all(getattr(loss, "masks", False) for loss in self._readers)

    @property
    def transductive(self) -> bool:
        """Whether one of the losses is."""
        return any(getattr(loss, "transductive", False) for loss in self.losses)

    @property
    def reads_batches(self) -> bool:
        """Whether one of the losses does."""
        return bool(self._readers)

    def holds(self, path: str) -> bool:
        """Whether one of the losses holds a leaf of theta."""
        return any(loss.holds(path) for loss in self.losses if hasattr(loss, "holds"))

    def frozen(self, path: str) -> bool:
        """Whether a leaf of theta is not learned, by one of the losses."""
        return any(loss.frozen(path) for loss in self.losses if hasattr(loss, "frozen"))

    def map_batches(self, function: Callable[[tuple], Any], batch: Any) -> Any:
        """As the losses that read it do."""
        for loss in self._readers:
            if (mapped := getattr(loss, "map_batches", None)) is not None:
                return mapped(function, batch)
        return function(batch) if self._readers else batch

    def weight(self, batch: Any) -> Float[Array, ""]:
        """As the losses that read it say."""
        return next((loss.weight(batch) for loss in self._readers if hasattr(loss, "weight")), weight_of(batch))

    def checker(self, theta: PyTree, stack: Stack | None, batch: Any) -> Check:
        """The checks of all that have some."""
        builders = [loss.checker for loss in self.losses if hasattr(loss, "checker")]
        return all_of([build(theta, stack, batch) for build in builders])

    def check_theta(self, theta: PyTree, stack: Stack | None) -> None:
        """Raise ValueError where one of the losses does."""
        for loss in self.losses:
            if hasattr(loss, "check_theta"):
                loss.check_theta(theta, stack)

    @property
    def _readers(self) -> list[Any]:
        return [loss for loss in self.losses if getattr(loss, "reads_batches", True)]


def weighted_sum(losses: Sequence[Loss], weights: Sequence[float] | None = None) -> LossSum:
    """The loss sum_i w_i loss_i, all of the same theta: `weight_space(...)` with `EqualShares` and `TowardStart`, say.

    Args:
        losses: functions of (theta, stack, batch).
        weights: w_i, one each by default.

    Raises:
        ValueError: anything that is no loss, another number of weights.

    Example:
        >>> merge, stack = nm.np_merge(), nm.stack_models([{"w": jnp.eye(2)}, {"w": 3 * jnp.eye(2)}])
        >>> task = nm.weight_space(merge, lambda v, x: x @ v["w"], nm.CrossEntropy())
        >>> loss = nm.weighted_sum((task, nm.EqualShares(merge)), (1.0, 0.1))
        >>> given = {"w": jnp.full((1, 2, 2), 99.0)}, stack, (jnp.eye(2), np.array([0, 1]))  # the first model alone
        >>> f"{task(*given):.3f}, {loss(*given):.3f}"
        '0.313, 0.338'
    """
    return LossSum(losses, weights)  # type: ignore[arg-type]


def _drawn(loss: Loss, key: Array | None) -> dict[str, Array]:
    """The key, for a loss that takes one."""
    return {} if key is None or "key" not in inspect.signature(loss).parameters else {"key": key}
