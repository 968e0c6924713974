"""Weighted sums of objectives on the same batch, and of losses."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float

from alignment.checks import kind_of
from alignment.graph import PyTree
from npmerge.batches import weight_of
from npmerge.objectives.base import Apply, Check, Objective, tasks_of
from npmerge.objectives.terms import all_of, check_weights, one_or_more, weighted
from npmerge.stack import Stack

Loss = Callable[..., Array]


@dataclass(frozen=True)
class Sum(Objective):
    """sum_i w_i L_i: several objectives of one network on the same batch.

    Attributes:
        objectives: L_i; those that read batches must read the same kind of them.
        weights: w_i; None is one each.
    """

    objectives: tuple[Objective, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", one_or_more("Sum", self.objectives))
        check_weights(self)
        _check_equal("Sum", "objectives", self.objectives, self.weights)

    @property
    def masks(self) -> bool:  # type: ignore[override]
        """Whether all that read batches heed masks."""
        return all(o.masks for o in self._readers)

    @property
    def transductive(self) -> bool:  # type: ignore[override]
        """Whether one of the objectives is."""
        return any(o.transductive for o in self.objectives)

    @property
    def reads_batches(self) -> bool:  # type: ignore[override]
        """Whether one of the objectives does."""
        return bool(self._readers)

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: Any) -> Float[Array, ""]:
        """The weighted sum."""
        values = [objective(apply, params, stack, batch) for objective in self.objectives]
        return weighted(values, self.weights or (1.0,) * len(values))

    def map_batches(self, function: Callable[[tuple], Any], batch: Any) -> Any:
        """As the objectives that read it do."""
        return self._readers[0].map_batches(function, batch) if self._readers else batch

    def weight(self, batch: Any) -> Float[Array, ""]:
        """As the objectives that read it say."""
        return self._readers[0].weight(batch) if self._readers else super().weight(batch)

    def of_task(self, task: int) -> "Sum":
        """The sum of what the objectives are there."""
        return Sum(tuple(o.of_task(task) for o in self.objectives), self.weights)

    def checker(self, apply: Apply, params: PyTree, stack: Stack | None, batch: Any) -> Check:
        """The checks of all, which must read batches of the same tasks."""
        if len({tasks_of(o, batch) for o in self._readers}) > 1:
            raise ValueError("a Sum is of objectives on the same batch, some of these read one for each task: Joint(Sum(...))")
        return all_of([o.checker(apply, params, stack, batch) for o in self.objectives])

    def check(self, batch: Any, outputs: PyTree) -> None:
        """The checks of all."""
        for objective in self.objectives:
            objective.check(batch, outputs)

    @property
    def _readers(self) -> list[Objective]:
        return [o for o in self.objectives if o.reads_batches]


@dataclass(frozen=True)
class LossSum:
    """`loss(theta, stack, batch)`, with a key for those terms that draw at random: sum_i w_i loss_i."""

    losses: tuple[Loss, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        losses = tuple(self.losses) if isinstance(self.losses, Sequence) else ()
        if not losses or not all(callable(loss) and not isinstance(loss, type | Objective) for loss in losses):
            got = ", ".join(map(kind_of, losses)) or kind_of(self.losses)
            raise ValueError(f"weighted_sum takes losses such as weight_space(merge, apply, objective), got {got}")
        object.__setattr__(self, "losses", losses)
        check_weights(self)
        _check_equal("weighted_sum", "losses", losses, self.weights)

    def __call__(self, theta: PyTree, stack: Stack | None, batch: Any, *, key: Array | None = None) -> Float[Array, ""]:
        """The weighted sum."""
        values = [loss(theta, stack, batch, **_drawn(loss, key)) for loss in self.losses]
        return weighted(values, self.weights or (1.0,) * len(values))

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
    """
    return LossSum(losses, weights)  # type: ignore[arg-type]


def _drawn(loss: Loss, key: Array | None) -> dict[str, Array]:
    """The key, for a loss that takes one."""
    return {} if key is None or "key" not in inspect.signature(loss).parameters else {"key": key}


def _check_equal(name: str, what: str, values: tuple, weights: tuple | None) -> None:
    if weights is not None and len(weights) != len(values):
        raise ValueError(f"{name} takes a weight for each of {len(values)} {what}: got {len(weights)}")
