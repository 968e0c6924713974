"""Arithmetic that merges share: in float32 or wider, sums over the models written out, 0 / 0 with an answer."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree, path_name
from alignment.widths import KEPT_APART


def wide(x: Array) -> Array:
    """In float32, or float64 if it is: what merges compute in, to round once."""
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def summed(terms: Iterable[Array]) -> Array:
    """The sum written out: XLA fuses it into one loop, where on CPUs a reduction over the leading axis is far slower."""
    return functools.reduce(jnp.add, terms)


def mean(models: Sequence[Array] | Array) -> Array:
    """The plain mean over the models, or of other terms, written out as `summed` does."""
    return summed(list(models)) / len(models)


def over_models(x: Float[Array, "models ..."]) -> Float[Array, "1 ..."]:
    """The sum over the models, written out as `summed` does."""
    return summed([x[k] for k in range(len(x))])[None]


def column(values: Any, x: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
    """One number per model in float32, as an array of as many axes as `x`."""
    known = values if isinstance(values, jax.Array) else np.asarray(values, np.float32)
    return jnp.asarray(known.reshape(-1, *(1,) * (x.ndim - 1)), jnp.float32)


def ratio(x: Float[Array, "..."], total: Float[Array, "..."]) -> Float[Array, "..."]:
    """The quotient, and zero where the total is."""
    return jnp.where(total != 0, x / jnp.where(total != 0, total, 1.0), 0.0)


def between(start: PyTree, end: PyTree, t: Float[Array, ""]) -> PyTree:
    """(1 - t) start + t end of two networks, running statistics too.

    Leaves that are no floating-point numbers are those of the start.
    """

    def leaf(a: Array, b: Array) -> Array:
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return a
        return ((1 - t) * a.astype(jnp.float32) + t * b.astype(jnp.float32)).astype(a.dtype)

    return jax.tree.map(leaf, start, end)


def mean_of(networks: Sequence[PyTree]) -> PyTree:
    """The plain mean of networks, running statistics too, in float32.

    Leaves that are no floating-point numbers are those of the first.

    Raises:
        ValueError: leaves of different shapes (the path and all of them are named).
    """

    def leaf(path: tuple, *leaves: Array) -> Array:
        if len({np.shape(x) for x in leaves}) > 1:
            shapes = ", ".join(str(np.shape(x)) for x in leaves)
            raise ValueError(
                f"{path_name(path)!r} has shapes {shapes} in the models, so they have no mean: map every node to one width; "
                f"{KEPT_APART}"
            )
        if not jnp.issubdtype(jnp.result_type(leaves[0]), jnp.floating):
            return leaves[0]
        return _mean(leaves, np.float32(len(leaves)))

    return jax.tree_util.tree_map_with_path(leaf, *networks)


@jax.jit
def _mean(leaves: tuple[Array, ...], count: Array) -> Array:
    return (summed([x.astype(jnp.float32) for x in leaves]) / count).astype(leaves[0].dtype)
