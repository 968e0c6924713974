"""From an objective to a loss: of a merge's theta, or of a network's own parameters."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float

from alignment.checks import check_kinds, first_line
from alignment.graph import PyTree, path_name
from alignment.names import is_statistic
from npmerge.base import Merge
from npmerge.normalisation import statistics_read, warn_of_statistics
from npmerge.objectives.base import Apply, Check, Objective, Term
from npmerge.sharding import gathered
from npmerge.stack import Stack, check_stack

IN_TRAINING = (
    "learn on the statistics of each batch, weight_space(merge, lambda v, x: train_apply(v, x)[0], objective), and call "
    "reset_statistics(train_apply, variables, batches) on the result"
)
"""What to do about BatchNorm while a merge is learned."""


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
    """`loss(theta, stack, batch)`: build the merged network, evaluate the objective. `weight_space` makes it.

    Attributes:
        merge: whose theta is learned.
        apply: the network.
        objective: what is minimised.

    Example:
        >>> loss = nm.weight_space(nm.np_merge(), lambda v, x: x @ v["w"], nm.CrossEntropy())
        >>> stack = nm.stack_models([{"w": jnp.eye(2)}, {"w": -jnp.eye(2)}])
        >>> gradient = jax.grad(loss)(loss.merge.init(stack), stack, (jnp.eye(2), np.array([0, 1])))
        >>> print(gradient["w"][0].diagonal())  # more of the first model, where it is right
        [-0.125 -0.125]
    """

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
        merged = _merged_shapes(self.merge, theta, check_stack(stack))
        check = self.objective.checker(self.apply, merged, stack, batch)
        if held := self._statistics(merged, stack, batch):
            warn_of_statistics(held, IN_TRAINING, stacklevel=6)
        return check

    def _statistics(self, merged: PyTree, stack: Stack | None, batch: Any) -> list[str]:
        """Running statistics of the merged network that the objective depends on."""
        try:
            return statistics_read(functools.partial(self.objective, self.apply), merged, stack, batch)
        except Exception:  # what is wrong with a batch is told where it is learned from
            return []


@dataclass(frozen=True)
class FineTuningLoss(OfObjective):
    """`loss(params, stack, batch)`: theta is the network itself. The honest control of every learned merge.

    Running statistics have no gradient, and `fit` holds them: they are estimated from data, as in a merge.

    `fine_tuning` makes it.

    Attributes:
        apply: the network.
        objective: what is minimised.

    Example:
        >>> loss = nm.fine_tuning(lambda v, x: x @ v["w"], nm.CrossEntropy())
        >>> print(jax.grad(loss)({"w": jnp.zeros((2, 2))}, None, (jnp.eye(2), np.array([0, 1])))["w"])
        [[-0.25  0.25]
         [ 0.25 -0.25]]
    """

    apply: Apply
    objective: Objective

    def __call__(self, theta: PyTree, stack: Stack | None, batch: Any) -> Float[Array, ""]:
        """The objective of theta."""
        return self.objective(self.apply, gathered(_still_statistics(theta)), stack, batch)

    def terms(self, theta: PyTree, stack: Stack | None, batch: Any) -> list[Term]:
        """The parts of it that are averaged alone over several batches (`Objective.terms`)."""
        return self.objective.terms(self.apply, gathered(_still_statistics(theta)), stack, batch)

    def holds(self, path: str) -> bool:
        """Whether a leaf of theta stays as it is, whatever the optimiser does: a running statistic."""
        return is_statistic(path)

    def frozen(self, path: str) -> bool:
        """Whether a leaf of theta is none of what is learned: where the network says so (`RoutedNetwork.frozen`)."""
        return frozen_in(self.apply, path)

    def checker(self, theta: PyTree, stack: Stack | None, batch: Any) -> Check:
        """A check for batches like this one: it raises ValueError for those that cannot be learned from."""
        return self.objective.checker(self.apply, theta, stack, batch)


def weight_space(merge: Merge, apply: Apply, objective: Objective) -> WeightSpaceLoss:
    """The loss of a merge's theta.

    A network with BatchNorm is learned on the statistics of each batch, by the outputs of training mode:
    `weight_space(merge, lambda v, x: train_apply(v, x)[0], objective)`. In evaluation mode it would be learned to fit the
    average of the models' running statistics, which `reset_statistics` then replaces by others; `fit` warns of it.

    Args:
        merge: whose theta is learned, such as `np_merge()`.
        apply: the network, `apply(variables, inputs) -> outputs`.
        objective: what is minimised, such as `CrossEntropy()`.

    Returns:
        `loss(theta, stack, batch) -> scalar`, for `fit`.

    Raises:
        ValueError: arguments of other kinds.

    Example:
        >>> merge, stack = nm.np_merge(), nm.stack_models([{"w": jnp.eye(2)}, {"w": 3 * jnp.eye(2)}])
        >>> loss = nm.weight_space(merge, lambda v, x: x @ v["w"], nm.CrossEntropy())
        >>> f"{loss(merge.init(stack), stack, (jnp.eye(2), np.array([0, 1]))):.3f}"  # of the average
        '0.127'
    """
    check_kinds(
        f"weight_space takes (merge, apply, objective){of_function(objective)}", (merge, Merge), *_pair(apply, objective)
    )
    return WeightSpaceLoss(merge, apply, objective)


def fine_tuning(apply: Apply, objective: Objective) -> FineTuningLoss:
    """The loss of a network's own parameters, for training and for controls.

    `fit` leaves running statistics (known by their paths) as they are, under weight decay, too. Afterwards `reset_statistics`
    estimates them from data.

    Args:
        apply: the network, `apply(variables, inputs) -> outputs`.
        objective: what is minimised, such as `CrossEntropy()`.

    Returns:
        `loss(variables, stack, batch) -> scalar`, for `fit`; the stack may be None unless the objective reads it.

    Raises:
        ValueError: arguments of other kinds.

    Example:
        >>> loss = nm.fine_tuning(lambda v, x: x @ v["w"], nm.CrossEntropy())
        >>> batches = [(jnp.eye(2), np.array([0, 1]))]
        >>> found = nm.fit({"w": jnp.zeros((2, 2))}, loss, None, batches, optax.sgd(1.0), steps=2)
        >>> print(found.history.loss.round(2))
        [0.69 0.47]
    """
    check_kinds(f"fine_tuning takes (apply, objective){of_function(objective)}", *_pair(apply, objective))
    return FineTuningLoss(apply, objective)


def _merged_shapes(merge: Merge, theta: PyTree, stack: Stack) -> PyTree:
    """Raises ValueError for a theta that the merge cannot take with these models."""
    try:
        return jax.eval_shape(merge.apply, theta, stack)
    except ValueError:
        raise
    except Exception as error:  # whatever a merge makes of a theta that is none
        raise ValueError(f"theta and the models do not go together ({first_line(error)})") from error


def _still_statistics(variables: PyTree) -> PyTree:
    """The variables, without a gradient for running statistics."""

    def leaf(path: tuple, x: Array) -> Array:
        return jax.lax.stop_gradient(x) if is_statistic(path_name(path)) else x

    return jax.tree_util.tree_map_with_path(leaf, variables)


def _pair(apply: Any, objective: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    return (apply, Callable), (objective, Objective)


def frozen_in(apply: Apply, path: str) -> bool:
    """Whether a network says of a leaf of its variables that it is not learned."""
    says = getattr(apply, "frozen", None)
    return callable(says) and bool(says(path))


def of_function(objective: Any) -> str:
    """What to do with a function that is given as an objective."""
    return (
        "" if isinstance(objective, type | Objective) or not callable(objective) else ", PerExample(function) is an objective"
    )
