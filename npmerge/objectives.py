"""What learning minimises, and how an objective becomes a loss of a merge's parameters.

Objectives are values: `objective(apply, params, stack, batch) -> scalar`, with batches `(inputs, targets)`. `weight_space`
turns one into the `loss(theta, stack, batch)` that `fit` descends on.
"""

import abc
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from alignment.base import Alignment, maps_of
from alignment.checks import check_kinds
from alignment.graph import Graph, PyTree
from alignment.maps import transport
from alignment.weight_distance import weight_distance
from npmerge.base import Merge, between
from npmerge.batches import check_pair, masked_mean
from npmerge.stack import Stack, check_stack

Apply = Callable[[PyTree, Array], Array]
Padded = Callable[[tuple, Callable[[tuple], tuple]], tuple]


class Objective(abc.ABC):
    """A scalar to minimise, averaged over the examples of a batch.

    Attributes:
        masks: whether batches may be `(inputs, targets, mask)`, as `npmerge.batches.padded` makes them: the mean is then over
            the examples that the mask keeps.
    """

    masks: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The value for the network `params`; `stack` holds the models it was merged from."""

    def padded(self, batch: tuple, pad: Callable[[tuple], tuple]) -> tuple:
        """The batch with `pad` done to every `(inputs, targets)` in it."""
        return pad(batch)

    def check(self, batch: tuple, outputs: PyTree) -> None:  # noqa: B027 (nothing to check is the default)
        """Raise ValueError if a network with these outputs (`jax.ShapeDtypeStruct`) cannot learn from the batch. Host side."""


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Mean cross entropy of the logits (examples, ..., classes) with integer labels (examples, ...).

    Of a language model, whose batches are `(tokens[:, :-1], tokens[:, 1:])`, it is the loss of the next token.
    """

    masks: ClassVar[bool] = True

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The mean over the batch, in nats."""
        inputs, labels = batch[:2]
        logits = apply(params, inputs).astype(jnp.float32)
        return masked_mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels), batch)

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

    masks: ClassVar[bool] = True
    temperature: float = 1.0

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The mean over the batch, in nats. Raises ValueError without a stack."""
        if stack is None:
            raise ValueError("Distillation needs the models to distil from: got no stack")
        inputs, t = batch[0], self.temperature
        student = jax.nn.log_softmax(apply(params, inputs).astype(jnp.float32) / t)
        predictions = [jax.nn.softmax(apply(model, inputs).astype(jnp.float32) / t) for model in stack.models()]
        teacher = jax.lax.stop_gradient(sum(predictions[1:], predictions[0]) / len(predictions))
        return t**2 * masked_mean(optax.kl_divergence(student, teacher), batch)


@dataclass(frozen=True)
class Entropy(Objective):
    """Mean entropy of the predictions, -sum_c p_c log p_c with p the softmax of the logits; needs no labels.

    What AdaMerging minimises on inputs of all tasks (Yang et al. 2024). It falls to zero for a network that is
    sure of anything, also of one class for all inputs: batches must mix the tasks, and accuracy be watched. On inputs that
    are tested on later the result is transductive. Some implementations put a floor of 1e-8 under p, here the logarithm is
    that of the softmax itself.
    """

    masks: ClassVar[bool] = True

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The mean over the batch, in nats."""
        logs = jax.nn.log_softmax(apply(params, batch[0]).astype(jnp.float32))
        return masked_mean(-(jnp.exp(logs) * logs).sum(-1), batch)


def check_labels(labels: Int[Array, "examples ..."], outputs: PyTree) -> None:
    """Raise ValueError unless the outputs are logits (examples, ..., classes) and the labels integers in [0, classes).

    Args:
        labels: one per prediction: one per example, or per token of it.
        outputs: what the network returns for the batch, as arrays or `jax.ShapeDtypeStruct`.
    """
    logits = getattr(outputs, "shape", None)
    if logits is None or len(logits) < 2:
        got = jax.tree.map(lambda x: x.shape, outputs)
        raise ValueError(f"apply must return logits (examples, classes), got {got}; in training mode drop the new statistics")
    values = np.asarray(labels)
    if values.ndim != len(logits) - 1 or values.shape[1:] != logits[1:-1]:  # other batches may hold other numbers of examples
        raise ValueError(f"labels must be one per prediction, of shape {logits[:-1]}: got {values.shape}")
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"labels must be integers, got dtype {values.dtype}")
    if values.size and not 0 <= values.min() <= values.max() < logits[-1]:
        raise ValueError(f"labels out of range: got {values.min()} to {values.max()}, expected 0 to {logits[-1] - 1}")


@dataclass(frozen=True)
class WeightSpaceLoss:
    """`loss(theta, stack, batch)`: build the merged network, evaluate the objective."""

    merge: Merge
    apply: Apply
    objective: Objective

    def __call__(self, theta: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The objective of `merge.apply(theta, stack)`."""
        return self.objective(self.apply, self.merge.apply(theta, check_stack(stack)), stack, batch)

    @property
    def padded(self) -> Padded | None:
        """Fills batches up; None if the objective takes no masks."""
        return self.objective.padded if self.objective.masks else None

    def checker(self, theta: PyTree, stack: Stack | None, batch: tuple) -> Callable[[tuple], None]:
        """A check for batches like this one: it raises ValueError for those that cannot be learned from."""
        check_pair(batch)
        merged = jax.eval_shape(self.merge.apply, theta, check_stack(stack))
        return functools.partial(self.objective.check, outputs=jax.eval_shape(self.apply, merged, batch[0]))


@dataclass(frozen=True)
class FineTuningLoss:
    """`loss(params, stack, batch)`: theta is the network itself. The honest control of every learned merge."""

    apply: Apply
    objective: Objective

    def __call__(self, theta: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The objective of theta."""
        return self.objective(self.apply, theta, stack, batch)

    @property
    def padded(self) -> Padded | None:
        """Fills batches up; None if the objective takes no masks."""
        return self.objective.padded if self.objective.masks else None

    def checker(self, theta: PyTree, stack: Stack | None, batch: tuple) -> Callable[[tuple], None]:
        """A check for batches like this one: it raises ValueError for those that cannot be learned from."""
        check_pair(batch)
        return functools.partial(self.objective.check, outputs=jax.eval_shape(self.apply, theta, batch[0]))


@dataclass(frozen=True)
class LineLoss:
    """`loss(theta, stack, batch, key=)`: the objective at a random point of the line from the reference to each other model.

    Without a key the point is the middle of the interval, so that held-out losses can be compared.
    """

    alignment: Alignment
    graph: Graph
    apply: Apply
    objective: Objective
    interval: tuple[float, float]

    def __call__(self, theta: PyTree, stack: Stack | None, batch: tuple, *, key: Array | None = None) -> Float[Array, ""]:
        """The mean over the other models of the objective at one point of their lines."""
        models = self._models(stack)
        low, high = self.interval
        t = jnp.float32((low + high) / 2) if key is None else jax.random.uniform(key, (), jnp.float32, low, high)
        maps = maps_of(self.alignment, self.graph, theta, len(models))
        moved = [transport(self.graph, m, v) for m, v in zip(maps, models, strict=True)]
        points = [between(models[0], other, t) for other in moved[1:]]
        losses = [self.objective(self.apply, point, stack, batch) for point in points]
        return sum(losses[1:], losses[0]) / len(losses)

    @property
    def padded(self) -> Padded | None:
        """Fills batches up; None if the objective takes no masks."""
        return self.objective.padded if self.objective.masks else None

    def checker(self, theta: PyTree, stack: Stack | None, batch: tuple) -> Callable[[tuple], None]:
        """A check for batches like this one: it raises ValueError for those that cannot be learned from."""
        check_pair(batch)
        outputs = jax.eval_shape(self.apply, self._models(stack)[0], batch[0])
        return functools.partial(self.objective.check, outputs=outputs)

    def check_theta(self, theta: PyTree, stack: Stack | None) -> None:
        """Raise ValueError unless there is a line, and theta is of these models."""
        maps_of(self.alignment, self.graph, theta, len(self._models(stack)))

    def _models(self, stack: Stack | None) -> list[PyTree]:
        models = check_stack(stack).models()
        if len(models) < 2:
            raise ValueError("a line needs two models at least: got a stack of 1")
        return models


@dataclass(frozen=True)
class WeightDistance:
    """`loss(theta, stack, batch)`: how far the aligned weights are from the reference's. Needs no data: `batches=[()]`."""

    alignment: Alignment
    graph: Graph

    def __post_init__(self) -> None:
        check_kinds("WeightDistance takes (alignment, graph)", (self.alignment, Alignment), (self.graph, Graph))

    def __call__(self, theta: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """Mean squared distance of the weights."""
        return weight_distance(self.alignment, self.graph, theta, check_stack(stack).models())


def weight_space(merge: Merge, apply: Apply, objective: Objective) -> WeightSpaceLoss:
    """The loss of a merge's theta.

    To learn with batch statistics give the outputs of training mode: `lambda v, x: train_apply(v, x)[0]`. Raises ValueError
    if the arguments are of other kinds.
    """
    call = "weight_space takes (merge, apply, objective)"
    check_kinds(call, (merge, Merge), (apply, Callable), (objective, Objective))
    return WeightSpaceLoss(merge, apply, objective)


def along_line(
    alignment: Alignment, graph: Graph, apply: Apply, objective: Objective, *, interval: tuple[float, float] = (0.0, 1.0)
) -> LineLoss:
    """The loss of an alignment's theta at random points between the reference and the aligned models.

    (1 - t) A + t T(B) with t ~ U(interval) in each step of `fit(..., key=)`: the random-path loss of Pena et al. 2023 for (0,
    1), their midpoint loss for (0.5, 0.5); Theus et al. 2025 draw from (0.4, 0.6). To learn coefficients as well, fit the loss
    of `Aligned(alignment, Learned(...), graph)` instead.

    Raises:
        ValueError: arguments of other kinds, an interval outside [0, 1].
    """
    call = "along_line takes (alignment, graph, apply, objective)"
    check_kinds(call, (alignment, Alignment), (graph, Graph), (apply, Callable), (objective, Objective))
    ends = tuple(interval) if isinstance(interval, Sequence) else ()
    if len(ends) != 2 or not 0 <= ends[0] <= ends[1] <= 1:
        raise ValueError(f"interval must be two numbers, ordered and within [0, 1], got {interval}")
    return LineLoss(alignment, graph, apply, objective, ends)


def fine_tuning(apply: Apply, objective: Objective) -> FineTuningLoss:
    """The loss of a network's own parameters, for training and for controls. Raises ValueError for other kinds."""
    check_kinds("fine_tuning takes (apply, objective)", (apply, Callable), (objective, Objective))
    return FineTuningLoss(apply, objective)
