"""The entries of largest magnitude, exactly and without sorting."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt

from alignment.graph import PyTree

LIMIT = 2**32
"""Entries are counted in unsigned integers of 32 bits."""


def kept_of(density: float, size: int) -> int:
    """How many of `size` entries a density keeps: the nearest integer (halves to the even one), but at least one.

    Implementations round down, or keep one more; so they may differ by one entry for each tensor.
    """
    return max(1, round(density * size))


def largest(tree: PyTree, count: int | UInt[Array, ""]) -> PyTree:
    """Masks of the `count` entries of largest magnitude among all leaves.

    Exactly so many are True: of equal magnitudes the first are taken, leaf by leaf in the order of the tree. The bit pattern
    of |x| grows with |x|, so its bits are found one after the other, each by counting the entries that are not below: 31
    passes over float32, 15 over 16-bit values. Equal magnitudes take a second such search, over the positions. Traceable,
    and for leaves that are sharded only counts are exchanged.

    Args:
        tree: floating-point arrays of one dtype, without NaN; an array is a tree of one leaf.
        count: 0 to the number of entries; it may be traced.

    Returns:
        The tree with boolean arrays of the same shapes.

    Raises:
        ValueError: leaves of several dtypes, or a number of entries that 32 bits do not hold.
    """
    leaves, structure = jax.tree.flatten(tree)
    total = sum(x.size for x in leaves)
    if not total:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, bool), tree)
    if total >= LIMIT:
        raise ValueError(f"cannot select among {total} entries at once, at most {LIMIT - 1}: select in each tensor by itself")
    if len({x.dtype for x in leaves}) > 1:
        raise ValueError(f"expected leaves of one dtype, got {sorted({str(x.dtype) for x in leaves})}")
    return jax.tree.unflatten(structure, _largest(leaves, jnp.asarray(count, jnp.uint32)))


@jax.jit
def _largest(leaves: list[Array], count: UInt[Array, ""]) -> list[Bool[Array, "..."]]:
    keys = [_magnitude(x) for x in leaves]
    width = 8 * keys[0].dtype.itemsize - 1
    threshold = _last(lambda t: _count([k >= t for k in keys]) >= count, width, keys[0].dtype)
    tied, spare = [k == threshold for k in keys], count - _count([k > threshold for k in keys])
    places = _places(leaves)

    def few(end: Array) -> Bool[Array, ""]:
        return _count([t & (p < end) for t, p in zip(tied, places, strict=True)]) <= spare

    width = sum(x.size for x in leaves).bit_length()
    all_tied = _count(tied) == spare
    end = jax.lax.cond(all_tied, lambda: jnp.uint32(LIMIT - 1), lambda: _last(few, width, jnp.uint32))
    return [(k > threshold) | (t & (p < end)) for k, t, p in zip(keys, tied, places, strict=True)]


def _magnitude(x: Array) -> UInt[Array, "..."]:
    """The bit pattern of |x|. Integers all the way: comparisons of floats take subnormal numbers for zeros."""
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return bits & bits.dtype.type(2 ** (8 * x.dtype.itemsize - 1) - 1)


def _places(leaves: list[Array]) -> list[UInt[Array, "..."]]:
    """The position of each entry among all."""
    places, start = [], 0
    for x in leaves:
        places.append(jax.lax.iota(jnp.uint32, x.size).reshape(x.shape) + jnp.uint32(start))
        start += x.size
    return places


def _count(masks: list[Bool[Array, "..."]]) -> UInt[Array, ""]:
    return functools.reduce(jnp.add, [jnp.sum(m, dtype=jnp.uint32) for m in masks])


def _last(holds: Callable[[Array], Bool[Array, ""]], width: int, dtype: Any) -> UInt[Array, ""]:
    """The last of the integers of `width` bits for which a condition holds that holds at 0 and, once false, stays so."""

    def refine(done: Array, found: UInt[Array, ""]) -> UInt[Array, ""]:
        tried = found | jnp.left_shift(jnp.ones((), dtype), (width - 1 - done).astype(dtype))
        return jnp.where(holds(tried), tried, found)

    return jax.lax.fori_loop(0, width, refine, jnp.zeros((), dtype))
