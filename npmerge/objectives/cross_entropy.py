"""Cross entropy with labels."""

from dataclasses import dataclass

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from alignment.graph import PyTree
from npmerge.batches import check_batch, check_lengths
from npmerge.masks import kept, masked_mean
from npmerge.objectives.base import Apply, Objective
from npmerge.objectives.labels import check_labels
from npmerge.stack import Stack


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Mean cross entropy of the logits (examples, ..., classes) with integer labels (examples, ...).

    Of a language model, whose batches are `(tokens[:, :-1], tokens[:, 1:])`, it is the loss of the next token, as
    `NextToken()` is on the tokens themselves.

    Example:
        >>> apply = lambda v, x: x @ v
        >>> batch = jnp.eye(3), np.array([0, 1, -1]), np.array([True, True, False])  # the last is padding
        >>> value = nm.CrossEntropy()(apply, jnp.zeros((3, 4)), None, batch)
        >>> f"{value:.3f} = log 4 = {np.log(4):.3f}"
        '1.386 = log 4 = 1.386'
    """

    masks = True

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The mean over the batch, in nats."""
        inputs, labels = batch[0], jnp.asarray(batch[1])
        if len(batch) == 3:  # labels of padding may be no class
            labels = jnp.where(kept(batch[2], labels.shape), labels, 0)
        logits = apply(params, inputs).astype(jnp.float32)
        return masked_mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels), batch)

    def check(self, batch: tuple, outputs: PyTree) -> None:
        """A batch must be `(inputs, labels)`, or with a mask, the labels that count integers in [0, classes)."""
        check_batch(batch, masks=True)
        check_lengths(batch)
        check_labels(batch[1], outputs, *batch[2:])
