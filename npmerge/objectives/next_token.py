"""The loss of a language model: the next token."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from alignment.graph import PyTree
from npmerge.batches import check_batch
from npmerge.masks import mean_where
from npmerge.objectives.base import Apply, Check, Objective
from npmerge.objectives.labels import check_logits
from npmerge.objectives.of_user import outputs_of
from npmerge.stack import Stack


@dataclass(frozen=True)
class NextToken(Objective):
    """Mean cross entropy of each token given those before it (Radford et al. 2018, "Improving Language Understanding").

    Batches are tokens (examples, length) alone, `(tokens, anything)` or `(tokens, anything, mask)`: the network reads all but
    the last token of each example and is asked for all but the first. Negative tokens, which the network reads as token 0, and
    what a mask (examples,) or (examples, length) does not keep are padding, and never asked for. Padding belongs at the end,
    where no causal network looks at it.

    Example:
        >>> apply = lambda v, tokens: v[tokens]  # the logits of the next token, by the last one
        >>> after, tokens = 2 * jnp.roll(jnp.eye(3), 1, axis=1), np.array([[0, 1, 2], [1, 2, -1]])  # -1 is padding
        >>> objective = nm.NextToken()
        >>> f"{objective(apply, after, None, tokens):.2f} over {objective.weight(tokens):.0f} tokens"
        '0.24 over 3 tokens'
    """

    masks = True

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: Any) -> Float[Array, ""]:
        """The mean over the tokens that are asked for, in nats per token."""
        parts = _parts(batch)
        tokens = jnp.asarray(parts[0])
        logits = apply(params, jnp.maximum(tokens[:, :-1], 0)).astype(jnp.float32)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(tokens[:, 1:], 0))
        return mean_where(values, _real(tokens, *map(jnp.asarray, parts[2:]))[:, 1:])

    def map_batches(self, function: Callable[[tuple], Any], batch: Any) -> Any:
        """`function` of the batch; of tokens alone it is `(tokens, None)`."""
        return function(_parts(batch))

    def weight(self, batch: Any) -> Float[Array, ""]:
        """How many tokens are asked for."""
        tokens, _, *mask = _parts(batch)
        return _real(jnp.asarray(tokens), *map(jnp.asarray, mask))[:, 1:].sum().astype(jnp.float32)

    def checker(self, apply: Apply, params: PyTree, stack: Stack | None, batch: Any) -> Check:
        """Tokens must be integers (examples, length), two of them or more, in the network's vocabulary."""
        vocabulary = check_logits(outputs_of(lambda p, t: apply(p, t[:, :-1]), params, _checked(batch)[0]))[-1]

        def check(batch: Any) -> None:
            tokens, _, *mask = _checked(batch)
            real = np.asarray(tokens)[_real(np.asarray(tokens), *map(np.asarray, mask))]
            if real.size and real.max() >= vocabulary:
                raise ValueError(f"tokens out of range: got {real.max()}, the network has logits of {vocabulary}")

        return check


def _parts(batch: Any) -> tuple:
    return tuple(batch) if isinstance(batch, tuple | list) else (batch, None)


def _real(tokens: Any, mask: Any = None) -> Any:
    """Which tokens are no padding, (examples, length); of numpy or JAX."""
    return tokens >= 0 if mask is None else (tokens >= 0) & (mask if mask.ndim == 2 else mask[:, None])


def _checked(batch: Any) -> tuple:
    """The parts of a batch. Raises ValueError unless they are tokens."""
    parts = _parts(batch)
    check_batch(parts, masks=True)
    tokens = parts[0]
    shape, dtype = np.shape(tokens), getattr(tokens, "dtype", None)
    if len(shape) != 2 or shape[1] < 2 or dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"tokens must be integers (examples, length), with a length of two or more: got {shape} of {dtype}")
    if len(parts) == 3 and np.ndim(parts[2]) == 2 and np.shape(parts[2]) != shape:
        raise ValueError(f"the mask is of shape {np.shape(parts[2])}, the tokens that it belongs to are of {shape}")
    return parts
