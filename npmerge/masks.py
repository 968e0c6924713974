"""Padding in batches: which examples, or positions of them, count, and means over those."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def masked_mean(values: Float[Array, "examples ..."], batch: tuple) -> Float[Array, ""]:
    """The mean of values over the examples of a batch, or positions of them, that its mask keeps; over all without one.

    Zero where none is kept. What is padding must be finite all the same, for gradients to be. Traceable.
    """
    return values.mean() if len(batch) < 3 else mean_where(values, jnp.asarray(batch[2]))


def mean_where(values: Float[Array, "examples ..."], mask: Bool[Array, "examples ..."]) -> Float[Array, ""]:
    """The mean of the values that a mask over the first axes keeps, zero of none."""
    where = kept(mask, values.shape)
    return jnp.where(where, values, 0).sum() / jnp.maximum(where.sum(dtype=values.dtype), 1)


def kept(mask: Bool[Array, "examples ..."], shape: tuple[int, ...]) -> Bool[Array, "examples ..."]:
    """A mask over the first axes as one over all of them; an example whose positions are not told apart counts if one does.

    Raises:
        ValueError: if it is of other examples or positions.
    """
    mask = jnp.asarray(mask)
    mask = mask.any(tuple(range(len(shape), mask.ndim)))
    if mask.shape != shape[: mask.ndim]:
        raise ValueError(f"the mask is of shape {mask.shape}, the values that it belongs to are of {shape}")
    return jnp.broadcast_to(mask.reshape(*mask.shape, *(1,) * (len(shape) - mask.ndim)), shape)


def counted(batch: tuple) -> Bool[Array, "examples ..."]:
    """Which examples of a batch, or positions of each, are no padding. Traceable.

    That is the mask of `(inputs, targets, mask)`, (examples,) or (examples, positions). Without one, integer targets of such a
    shape mark padding by negative numbers, as labels to be ignored are usually written; else everything counts.
    """
    examples = len(jax.tree.leaves(batch[0])[0])
    if len(batch) == 3:
        return jnp.asarray(batch[2])
    labels = batch[1]
    if (
        getattr(labels, "ndim", 0) in (1, 2)
        and len(labels) == examples
        and jnp.issubdtype(jnp.result_type(labels), jnp.integer)
    ):
        return jnp.asarray(labels) >= 0
    return jnp.ones(examples, bool)


def weight_of(batch: tuple) -> Float[Array, ""]:
    """How many examples, or positions, of a batch count: by its mask if it has one. Traceable."""
    if len(batch) == 3 and jnp.result_type(batch[2]) == jnp.bool_:
        return batch[2].sum().astype(jnp.float32)
    return jnp.float32(examples_in(batch))


def padded(batch: tuple, size: int) -> tuple:
    """A batch with examples of zeros up to a size, and the mask of those that were there.

    Args:
        batch: `(inputs, targets)`, or with a mask of bool as its third part, which is padded with False.
        size: number of examples that it gets.

    Raises:
        ValueError: more examples than that.
    """
    count = examples_in(batch)
    if count > size:
        raise ValueError(f"a batch of {count} examples cannot be filled up to {size}")
    whole = batch if len(batch) == 3 else (*batch, np.ones(count, bool))
    if count == size:
        return whole

    def fill(x: Array | np.ndarray) -> Array | np.ndarray:
        xp: Any = jnp if isinstance(x, jax.Array) else np
        return xp.concatenate([x, xp.zeros((size - count, *x.shape[1:]), x.dtype)]) if np.ndim(x) else x

    return jax.tree.map(fill, whole)


def examples_in(batch: tuple) -> int:
    """How many examples a batch has, padding included; one where all of it are single numbers."""
    return next((len(x) for x in jax.tree.leaves(batch) if np.ndim(x)), 1)


def with_mask(batch: tuple) -> tuple:
    """The batch, with a mask as its third part where its targets mark padding; not traceable."""
    if len(batch) == 3 or bool((mask := counted(batch)).all()):
        return batch
    return (*batch, mask)


def check_mask(batch: Sequence) -> None:
    """Raise ValueError unless the third of a batch is true or false for each example, or each position of each."""
    mask, examples = batch[2], len(jax.tree.leaves(batch[0])[0])
    if not hasattr(mask, "dtype") or np.ndim(mask) not in (1, 2) or len(mask) != examples or mask.dtype != bool:
        got = f"{np.shape(mask)} of {mask.dtype}" if hasattr(mask, "dtype") else type(mask).__name__
        raise ValueError(
            f"a mask must be of bool, ({examples},) or ({examples}, positions) as the inputs: got {got}; weights of "
            "examples go into the targets of a loss of your own, (inputs, {'labels': ..., 'weights': ...})"
        )
