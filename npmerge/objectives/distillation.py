"""Distillation from the models that are merged."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from alignment.checks import check_number
from alignment.graph import PyTree
from npmerge.arithmetic import mean
from npmerge.masks import masked_mean
from npmerge.objectives.base import Apply, Check, Objective
from npmerge.objectives.labels import check_logits
from npmerge.objectives.teachers import Teacher, check_teacher, teachers
from npmerge.stack import Stack


@dataclass(frozen=True)
class Distillation(Objective):
    """Kullback-Leibler divergence from the predictions of the models that are merged; needs no labels.

    T^2 KL(softmax(f_m(x) / T) || softmax(f(x) / T)) (Hinton et al. 2015), from the mean of all predictions, from one model m,
    or from each model on the data of its own task: `Joint(Distillation(2.0, teacher="own"))`, as DAM does (Gauthier-Caron et
    al. 2024).

    Attributes:
        temperature: T.
        teacher: "mean", the number m of a model, or "own" inside `Joint`.

    Raises:
        ValueError: a temperature that is not above 0, another teacher.

    Example:
        >>> apply, stack = lambda v, x: x @ v["w"], nm.stack_models([{"w": jnp.eye(2)}, {"w": -jnp.eye(2)}])
        >>> value = lambda w: nm.Distillation()(apply, {"w": w}, stack, (jnp.eye(2), None))
        >>> f"{value(jnp.zeros((2, 2))):.2f}, {value(jnp.eye(2)):.2f}"  # the mean of their predictions is even
        '0.00, 0.12'
    """

    temperature: float = 1.0
    teacher: Teacher = "mean"

    masks = True

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, positive=True)
        check_teacher("Distillation", self.teacher)

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The mean over the batch, in nats. Raises ValueError without a stack, or without such a model."""
        inputs, t = batch[0], self.temperature
        models = teachers("Distillation", self.teacher, stack)
        student = jax.nn.log_softmax(apply(params, inputs).astype(jnp.float32) / t)
        predictions = [jax.nn.softmax(apply(model, inputs).astype(jnp.float32) / t) for model in models]
        teacher = jax.lax.stop_gradient(mean(predictions))
        return t**2 * masked_mean(optax.kl_divergence(student, teacher), batch)

    def of_task(self, task: int) -> "Distillation":
        """A task's own teacher, if each has its own."""
        return dataclasses.replace(self, teacher=task) if self.teacher == "own" else self

    def checker(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Check:
        """The teachers must be there."""
        jax.eval_shape(lambda s: teachers("Distillation", self.teacher, s), stack)
        return super().checker(apply, params, stack, batch)

    def check(self, batch: tuple, outputs: PyTree) -> None:
        """The outputs must be logits."""
        super().check(batch, outputs)
        check_logits(outputs)
