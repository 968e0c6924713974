"""From an objective to a loss: of a merge's theta, or of a network's own parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float

from alignment.checks import check_kinds
from alignment.graph import PyTree
from npmerge.base import Merge
from npmerge.objectives.base import Apply, Check, Objective, Term
from npmerge.sharding import gathered
from npmerge.stack import Stack, check_stack


class OfObjective:
    """What `fit` asks of a loss about its batches: it is for the objective to say."""

    objective: Objective

    @property
    def masks(self) -> bool:
        """Whether a batch may have a mask (`Objective.masks`)."""
        return self.objective.masks

    @property
    def transductive(self) -> bool:
        """Whether results on the inputs that it is learned from must be called transductive."""
        return self.objective.transductive

    @property
    def reads_batches(self) -> bool:
        """Whether the batch matters."""
        return self.objective.reads_batches

    def weight(self, batch: Any) -> Float[Array, ""]:
        """How many examples the value is the mean of (`Objective.weight`)."""
        return self.objective.weight(batch)

    def map_batches(self, function: Callable[[tuple], Any], batch: Any) -> Any:
        """`function` of the batch, or of that of each task (`Objective.map_batches`)."""
        return self.objective.map_batches(function, batch)


@dataclass(frozen=True)
class WeightSpaceLoss(OfObjective):
    """`loss(theta, stack, batch)`: build the merged network, evaluate the objective."""

    merge: Merge
    apply: Apply
    objective: Objective

    def __call__(self, theta: PyTree, stack: Stack | None, batch: Any) -> Float[Array, ""]:
        """The objective of `merge.apply(theta, stack)`."""
        return self.objective(self.apply, gathered(self.merge.apply(theta, check_stack(stack))), stack, batch)

    def terms(self, theta: PyTree, stack: Stack | None, batch: Any) -> list[Term]:
        """The parts of it that are averaged alone over several batches (`Objective.terms`)."""
        return self.objective.terms(self.apply, gathered(self.merge.apply(theta, check_stack(stack))), stack, batch)

    def checker(self, theta: PyTree, stack: Stack | None, batch: Any) -> Check:
        """A check for batches like this one: it raises ValueError for those that cannot be learned from."""
        merged = jax.eval_shape(self.merge.apply, theta, check_stack(stack))
        return self.objective.checker(self.apply, merged, stack, batch)


@dataclass(frozen=True)
class FineTuningLoss(OfObjective):
    """`loss(params, stack, batch)`: theta is the network itself. The honest control of every learned merge."""

    apply: Apply
    objective: Objective

    def __call__(self, theta: PyTree, stack: Stack | None, batch: Any) -> Float[Array, ""]:
        """The objective of theta."""
        return self.objective(self.apply, gathered(theta), stack, batch)

    def terms(self, theta: PyTree, stack: Stack | None, batch: Any) -> list[Term]:
        """The parts of it that are averaged alone over several batches (`Objective.terms`)."""
        return self.objective.terms(self.apply, gathered(theta), stack, batch)

    def checker(self, theta: PyTree, stack: Stack | None, batch: Any) -> Check:
        """A check for batches like this one: it raises ValueError for those that cannot be learned from."""
        return self.objective.checker(self.apply, theta, stack, batch)


def weight_space(merge: Merge, apply: Apply, objective: Objective) -> WeightSpaceLoss:
    """The loss of a merge's theta.

    A network with BatchNorm is learned on the statistics of each batch, by the outputs of training mode:
    `weight_space(merge, lambda v, x: train_apply(v, x)[0], objective)`. In evaluation mode it would be learned to fit the
    average of the models' running statistics, which `reset_statistics` then replaces by others. Raises ValueError if the
    arguments are of other kinds.
    """
    call = "weight_space takes (merge, apply, objective)"
    check_kinds(call, (merge, Merge), (apply, Callable), (objective, Objective))
    return WeightSpaceLoss(merge, apply, objective)


def fine_tuning(apply: Apply, objective: Objective) -> FineTuningLoss:
    """The loss of a network's own parameters, for training and for controls. Raises ValueError for other kinds."""
    check_kinds("fine_tuning takes (apply, objective)", (apply, Callable), (objective, Objective))
    return FineTuningLoss(apply, objective)
