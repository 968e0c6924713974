"""What learning minimises, and how an objective becomes a loss of a merge's parameters.

Objectives are values: `objective(apply, params, stack, batch) -> scalar`, with batches `(inputs, targets)`. `weight_space`
turns one into the `loss(theta, stack, batch)` that `fit` descends on.
"""

import abc
import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from alignment.graph import PyTree
from npmerge.base import Merge
from npmerge.stack import Stack

Apply = Callable[[PyTree, Array], Array]


class Objective(abc.ABC):
    """A scalar to minimise, averaged over the examples of a batch."""

    @abc.abstractmethod
    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The value for the network `params`; `stack` holds the models it was merged from."""

    def check(self, batch: tuple, classes: int) -> None:  # noqa: B027 (nothing to check is the default)
        """Raise ValueError if the batch cannot be learned from by a network with so many outputs. Host side."""


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Mean cross entropy of the logits with integer labels (examples,)."""

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The mean over the batch, in nats."""
        inputs, labels = batch
        logits = apply(params, inputs).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def check(self, batch: tuple, classes: int) -> None:
        """A batch must be `(inputs, labels)`, the labels integers in [0, classes)."""
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(f"a batch must be a tuple (inputs, labels), got {_describe(batch)}")
        check_labels(batch[1], classes)


@dataclass(frozen=True)
class Distillation(Objective):
    """Kullback-Leibler divergence from the mean prediction of the constituent models; needs no labels.

    T^2 KL(mean_m softmax(f_m(x) / T) || softmax(f(x) / T)) (Hinton et al. 2015).

    Attributes:
        temperature: T.
    """

    temperature: float = 1.0

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The mean over the batch, in nats. Raises ValueError without a stack."""
        if stack is None:
            raise ValueError("Distillation needs the models to distil from: got no stack")
        inputs, t = batch[0], self.temperature
        student = jax.nn.log_softmax(apply(params, inputs).astype(jnp.float32) / t)
        predictions = [jax.nn.softmax(apply(model, inputs).astype(jnp.float32) / t) for model in stack.models()]
        teacher = jax.lax.stop_gradient(sum(predictions[1:], predictions[0]) / len(predictions))
        return t**2 * optax.kl_divergence(student, teacher).mean()


def _describe(batch: object) -> str:
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {len(batch)}"
    return f"{type(batch).__name__} of shape {np.shape(batch)}" if hasattr(batch, "shape") else type(batch).__name__


def check_labels(labels: Int[Array, " examples"], classes: int) -> None:
    """Raise ValueError unless the labels are integers in [0, classes)."""
    values = np.asarray(labels)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"labels must be integers, got dtype {values.dtype}")
    if values.size and not 0 <= values.min() <= values.max() < classes:
        raise ValueError(f"labels out of range: got {values.min()} to {values.max()}, expected 0 to {classes - 1}")


@dataclass(frozen=True)
class WeightSpaceLoss:
    """`loss(theta, stack, batch)`: build the merged network, evaluate the objective."""

    merge: Merge
    apply: Apply
    objective: Objective

    def __call__(self, theta: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The objective of `merge.apply(theta, stack)`."""
        if stack is None:
            raise ValueError("a merge needs the stack of models it merges: got None")
        return self.objective(self.apply, self.merge.apply(theta, stack), stack, batch)

    def checker(self, theta: PyTree, stack: Stack, batch: tuple) -> Callable[[tuple], None]:
        """A check for batches like this one: it raises ValueError for those that cannot be learned from."""
        outputs = jax.eval_shape(lambda t, s, x: self.apply(self.merge.apply(t, s), x), theta, stack, batch[0])
        return functools.partial(self.objective.check, classes=outputs.shape[-1])


@dataclass(frozen=True)
class FineTuningLoss:
    """`loss(params, stack, batch)`: theta is the network itself. The honest control of every learned merge."""

    apply: Apply
    objective: Objective

    def __call__(self, theta: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The objective of theta."""
        return self.objective(self.apply, theta, stack, batch)

    def checker(self, theta: PyTree, stack: Stack | None, batch: tuple) -> Callable[[tuple], None]:
        """A check for batches like this one: it raises ValueError for those that cannot be learned from."""
        return functools.partial(self.objective.check, classes=jax.eval_shape(self.apply, theta, batch[0]).shape[-1])


def weight_space(merge: Merge, apply: Apply, objective: Objective) -> WeightSpaceLoss:
    """The loss of a merge's theta. Give `apply` in training mode to learn with batch statistics."""
    return WeightSpaceLoss(merge, apply, objective)


def fine_tuning(apply: Apply, objective: Objective) -> FineTuningLoss:
    """The loss of a network's own parameters, for training and for controls."""
    return FineTuningLoss(apply, objective)
