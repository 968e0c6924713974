"""Merged networks as functions of one kind: logits of all classes, whether networks share their labels or keep heads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

import npmerge as nm
from alignment.graph import PyTree
from npmerge.arithmetic import mean_of
from npmerge.heads.multi_head import Headed
from npmerge.objectives import Apply
from npmerge.stack import Stack


class Function(NamedTuple):
    """A network with its variables.

    Attributes:
        apply: logits, evaluation mode.
        variables: of it.
        train_apply: training mode.
    """

    apply: Callable[..., Any]
    variables: PyTree
    train_apply: Callable[..., Any]

    def renewed(self, batches: Sequence[tuple]) -> "Function":
        """With statistics of BatchNorm from these images."""
        return self._replace(variables=nm.reset_statistics(self.train_apply, self.variables, batches))


def of_its_size(function: Function) -> Callable[..., Any]:
    """Its training mode, in which blocks that are zero stay so.

    Those between separate units of different networks are: learned they would make a larger network than the merge is.
    """
    kept = jax.tree.map(lambda leaf: (leaf != 0) | (leaf.ndim < 2), function.variables)

    def train_apply(variables: PyTree, inputs: Array) -> Any:
        masked = jax.tree.map(lambda leaf, there: jnp.where(there, leaf, jnp.zeros_like(leaf)), variables, kept)
        return function.train_apply(masked, inputs)

    return train_apply


@dataclass(frozen=True)
class OfHeads:
    """The logits of several heads as those of one network: side by side, or their mean.

    Attributes:
        heads: what makes them.
        apart: whether they are of different labels.
    """

    heads: Callable[..., Sequence[Array]]
    apart: bool

    def __call__(self, variables: PyTree, inputs: Array) -> Array:
        """Logits."""
        return joined(self.heads(variables, inputs), apart=self.apart)


@dataclass(frozen=True)
class OfHeadsTraining:
    """The same in training mode."""

    heads: Callable[..., Any]
    apart: bool

    def __call__(self, variables: PyTree, inputs: Array) -> tuple[Array, PyTree]:
        """Logits, and variables with new statistics."""
        logits, new = self.heads(variables, inputs)
        return joined(logits, apart=self.apart), new


def joined(logits: Sequence[Array], *, apart: bool) -> Array:
    """Logits side by side where they are of different labels, else their mean."""
    return jnp.concatenate(logits, -1) if apart else mean_of(list(logits))


def of_heads(headed: Headed, *, apart: bool) -> Function:
    """A network with several heads."""
    assert headed.train_apply is not None
    return Function(OfHeads(headed.apply, apart), headed.variables, OfHeadsTraining(headed.train_apply, apart))


@dataclass(frozen=True)
class WithinPart(nm.CrossEntropy):
    """Cross entropy among the classes of the part that an image is of.

    Attributes:
        classes: of a part; label l is of part l // classes.
    """

    classes: int

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The mean over the batch, in nats."""
        labels = jnp.asarray(batch[1])
        return super().__call__(lambda v, x: self._within(apply(v, x), labels), params, stack, batch)

    def _within(self, logits: Float[Array, "n outputs"], labels: Int[Array, " n"]) -> Float[Array, "n outputs"]:
        part = jnp.arange(logits.shape[1])[None] // self.classes == labels[:, None] // self.classes
        return jnp.where(part, logits, -jnp.inf)


@dataclass(frozen=True)
class Towards:
    """KL(teacher || student) of each image in nats, within each group of `classes` outputs, the mean over groups.

    Attributes:
        classes: outputs of a head.
    """

    classes: int

    def __call__(self, logits: Float[Array, "n outputs"], taught: Float[Array, "n outputs"]) -> Float[Array, " n"]:
        """Of the logits of both."""
        student, teacher = (jax.nn.log_softmax(x.reshape(len(x), -1, self.classes)) for x in (logits, taught))
        return (jnp.exp(teacher) * (teacher - student)).sum(-1).mean(-1)
