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
from npmerge.batches import check_pair
from npmerge.stack import Stack

Apply = Callable[[PyTree, Array], Array]


class Objective(abc.ABC):
    """A scalar to minimise, averaged over the examples of a batch."""

    @abc.abstractmethod
    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The value for the network `params`; `stack` holds the models it was merged from."""

    def check(self, batch: tuple, outputs: PyTree) -> None:  # noqa: B027 (nothing to check is the default)
        """Raise ValueError if a network with these outputs (`jax.ShapeDtypeStruct`) cannot learn from the batch. Host side."""


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Mean cross entropy of the logits with integer labels (examples,)."""

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The mean over the batch, in nats."""
        inputs, labels = batch
        logits = apply(params, inputs).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def check(self, batch: tuple, outputs: PyTree) -> None:
        """A batch must be `(inputs, labels)`, the labels integers in [0, classes)."""
        check_pair(batch)
        check_labels(batch[1], outputs)


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


def check_labels(labels: Int[Array, " examples"], outputs: PyTree) -> None:
    """Raise ValueError unless the outputs are logits (examples, classes) and the labels integers in [0, classes).

    Args:
        labels: one per example.
        outputs: what the network returns for the batch, as arrays or `jax.ShapeDtypeStruct`.
    """
    logits = getattr(outputs, "shape", None)
    if logits is None or len(logits) != 2:
        got = jax.tree.map(lambda x: x.shape, outputs)
        raise ValueError(f"apply must return logits (examples, classes), got {got}; in training mode drop the new statistics")
    values = np.asarray(labels)
    if values.ndim != 1:
        raise ValueError(f"labels must be one per example, of shape ({logits[0]},): got {values.shape}")
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"labels must be integers, got dtype {values.dtype}")
    if values.size and not 0 <= values.min() <= values.max() < logits[1]:
        raise ValueError(f"labels out of range: got {values.min()} to {values.max()}, expected 0 to {logits[1] - 1}")


@dataclass(frozen=True)
class WeightSpaceLoss:
    """`loss(theta, stack, batch)`: build the merged network, evaluate the objective."""

    merge: Merge
    apply: Apply
    objective: Objective

    def __call__(self, theta: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The objective of `merge.apply(theta, stack)`."""
        return self.objective(self.apply, self.merge.apply(theta, _given(stack)), stack, batch)

    def checker(self, theta: PyTree, stack: Stack | None, batch: tuple) -> Callable[[tuple], None]:
        """A check for batches like this one: it raises ValueError for those that cannot be learned from."""
        check_pair(batch)
        merged = jax.eval_shape(self.merge.apply, theta, _given(stack))
        return functools.partial(self.objective.check, outputs=jax.eval_shape(self.apply, merged, batch[0]))


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
        check_pair(batch)
        return functools.partial(self.objective.check, outputs=jax.eval_shape(self.apply, theta, batch[0]))


def _given(stack: Stack | None) -> Stack:
    if stack is None:
        raise ValueError("a merge needs the stack of models it merges: got None")
    return stack


def weight_space(merge: Merge, apply: Apply, objective: Objective) -> WeightSpaceLoss:
    """The loss of a merge's theta.

    To learn with batch statistics give the outputs of training mode: `lambda v, x: train_apply(v, x)[0]`. Raises ValueError
    if the arguments are of other kinds.
    """
    if not isinstance(merge, Merge) or not isinstance(objective, Objective):
        raise ValueError(f"weight_space takes (merge, apply, objective), got {merge!r}, ..., {objective!r}")
    return WeightSpaceLoss(merge, apply, objective)


def fine_tuning(apply: Apply, objective: Objective) -> FineTuningLoss:
    """The loss of a network's own parameters, for training and for controls."""
    return FineTuningLoss(apply, objective)
