"""Weighted sums of objectives on the same batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float

from alignment.graph import PyTree
from npmerge.objectives.base import Apply, Check, Objective, Term, tasks_of
from npmerge.objectives.terms import all_of, check_equal, check_weights, one_or_more, scaled, weighted
from npmerge.stack import Stack


@dataclass(frozen=True)
class Sum(Objective):
    """sum_i w_i L_i: several objectives of one network on the same batch.

    Attributes:
        objectives: L_i; those that read batches must read the same kind of them.
        weights: w_i; None is one each.

    Raises:
        ValueError: no objectives, another number of weights.

    Example:
        >>> both = nm.Sum((nm.CrossEntropy(), nm.Entropy()), (1.0, 2.0))
        >>> given = lambda v, x: x @ v, jnp.eye(2), None, (jnp.eye(2), np.array([0, 1]))
        >>> print([f"{objective(*given):.2f}" for objective in (*both.objectives, both)])
        ['0.31', '0.58', '1.48']
    """

    objectives: tuple[Objective, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", one_or_more("Sum", self.objectives))
        check_weights(self)
        check_equal("Sum", "objectives", self.objectives, self.weights)

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

    def terms(self, apply: Apply, params: PyTree, stack: Stack | None, batch: Any) -> list[Term]:
        """Those of all."""
        found = [objective.terms(apply, params, stack, batch) for objective in self.objectives]
        return scaled(found, self.weights or (1.0,) * len(found))

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
