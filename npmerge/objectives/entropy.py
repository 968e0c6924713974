"""The entropy of predictions."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.graph import PyTree
from npmerge.masks import masked_mean
from npmerge.objectives.base import Apply, Objective
from npmerge.objectives.labels import check_logits
from npmerge.stack import Stack


@dataclass(frozen=True)
class Entropy(Objective):
    """Mean entropy of the predictions, -sum_c p_c log p_c with p the softmax of the logits; needs no labels.

    What AdaMerging minimises on inputs of all tasks (Yang et al. 2024). It falls to zero for a network that is
    sure of anything, also of one class for all inputs: batches must mix the tasks, and accuracy be watched. On inputs that
    are tested on later the result is transductive. Some implementations put a floor of 1e-8 under p, here the logarithm is
    that of the softmax itself.

    Example:
        >>> apply, batch = lambda v, x: x @ v, (jnp.eye(2), None)
        >>> [f"{nm.Entropy()(apply, scale * jnp.eye(2), None, batch):.2f}" for scale in (0.0, 2.0, 9.0)]  # ever surer
        ['0.69', '0.37', '0.00']
    """

    masks = True
    transductive = True

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The mean over the batch, in nats."""
        logs = jax.nn.log_softmax(apply(params, batch[0]).astype(jnp.float32))
        return masked_mean(-(jnp.exp(logs) * logs).sum(-1), batch)

    def check(self, batch: tuple, outputs: PyTree) -> None:
        """The outputs must be logits."""
        super().check(batch, outputs)
        check_logits(outputs)
