"""The entries of largest magnitude, exactly and without sorting."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt

from alignment.graph import PyTree

LIMIT = 2**32
"""Entries are counted in unsigned integers of 32 bits."""

SAMPLE = 16384
"""Entries that tell about where the threshold is."""

JOINED = 2**18
"""Entries that are joined to one vector: smaller leaves are many, and all that is done with each is compiled for each."""

GROUP = 32
"""Entries that are counted in one byte."""


def kept_of(density: float, size: int) -> int:
    """How many of `size` entries a density keeps: the nearest integer (halves to the even one), but at least one.

    Implementations round down, or keep one more; so they may differ by one entry for each tensor.
    """
    return max(1, round(density * size))


def largest(tree: PyTree, count: int | UInt[Array, ""]) -> PyTree:
    """Masks of the `count` entries of largest magnitude among all leaves.

    Exactly so many are True: of equal magnitudes the first are taken, leaf by leaf in the order of the tree. The bit pattern
    of |x| grows with |x|, so the threshold is an integer, and is searched by counting the entries that are not below: between
    the bounds that a sample suggests, where interpolation puts it, about ten passes over float32, at most some 90. Equal
    magnitudes take a second such search, over the positions. Traceable, and for leaves that are sharded only counts and the
    sample are exchanged.

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
    """Leaves of middling size joined: whatever is done with each is compiled for each."""
    masks = []
    runs = _runs([x.size for x in leaves])
    joined = [jnp.concatenate([x.reshape(-1) for x in leaves[run]]) for run in runs]
    for run, mask in zip(runs, _largest_of(joined, count), strict=True):
        parts = jnp.split(mask, np.cumsum([x.size for x in leaves[run]])[:-1].tolist())
        masks += [part.reshape(x.shape) for part, x in zip(parts, leaves[run], strict=True)]
    return masks


def _runs(sizes: list[int]) -> list[slice]:
    """Neighbours in runs of at most JOINED entries; what is larger stands alone."""
    runs, start = [], 0
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or sum(sizes[start : end + 1]) > JOINED:
            runs.append(slice(start, end))
            start = end
    return runs


def _largest_of(vectors: list[Array], count: UInt[Array, ""]) -> list[Bool[Array, " entries"]]:
    total = sum(x.size for x in vectors)
    bits = 8 * vectors[0].dtype.itemsize
    top = jnp.asarray(2 ** (bits - 1), f"uint{bits}")

    # magnitudes and places are computed wherever they are read, as to keep them takes longer than to count them: behind a
    # barrier, or XLA would take them out of the loop
    def not_below(t: Array) -> UInt[Array, ""]:
        own, t = jax.lax.optimization_barrier((vectors, t))
        return _count([_magnitude(x) >= t for x in own])

    found = _search(not_below, count, top, total, _suggested(vectors, count, total))

    def tied() -> list[Bool[Array, " entries"]]:  # of one magnitude, unless the threshold is exact
        return [(k >= found.low) & (k < found.high) for k in map(_magnitude, vectors)]

    def few(rest: Array) -> UInt[Array, ""]:
        return _count([t & (p < total - rest) for t, p in zip(tied(), _places(vectors), strict=True)])

    def taken() -> UInt[Array, ""]:
        bounds = jnp.zeros(2, jnp.uint32)
        return _search(few, count - found.above, jnp.uint32(total), found.kept, bounds).low

    rest = jax.lax.cond((found.low + 1 < found.high) | (found.kept == count), lambda: jnp.uint32(0), taken)
    above = [_magnitude(x) >= found.high for x in vectors]
    return [a | (t & (p < total - rest)) for a, t, p in zip(above, tied(), _places(vectors), strict=True)]


class _Found(NamedTuple):
    """How far a search has come: `kept` entries are not below `low`, `above` are not below `high`."""

    low: UInt[Array, ""]
    high: UInt[Array, ""]
    kept: UInt[Array, ""]
    above: UInt[Array, ""]


def _search(
    counted: Callable[[Array], UInt[Array, ""]],
    count: UInt[Array, ""],
    top: UInt[Array, ""],
    total: int | UInt[Array, ""],
    suggested: UInt[Array, "2"],
) -> _Found:
    """Where a count that falls from `total` at 0 to none at `top` is `count`, or passes it from `low` to `high` = `low` + 1.

    The first two places tried are suggested; of the others every third is in the middle, so that no distribution of the entries
    takes more than three times as many as bisection.
    """

    def goes_on(state: tuple[Array, _Found]) -> Bool[Array, ""]:
        _, f = state
        return (f.kept != count) & (f.high - f.low > 1)

    def refine(state: tuple[Array, _Found]) -> tuple[Array, _Found]:
        step, f = state
        width = f.high - f.low
        share = (f.kept - count).astype(jnp.float32) / (f.kept - f.above).astype(jnp.float32)
        between = f.low + (share * width.astype(jnp.float32)).astype(width.dtype)
        tried = jnp.where(step < 2, suggested[step % 2], jnp.where(step % 3 == 0, f.low + width // 2, between))
        tried = jnp.clip(tried, f.low + 1, f.high - 1)
        number = counted(tried)
        enough = number >= count
        low, kept = jnp.where(enough, tried, f.low), jnp.where(enough, number, f.kept)
        high, above = jnp.where(enough, f.high, tried), jnp.where(enough, f.above, number)
        return step + 1, _Found(low, high, kept, above)

    start = _Found(jnp.zeros_like(top), top, jnp.asarray(total, jnp.uint32), jnp.uint32(0))
    return jax.lax.while_loop(goes_on, refine, (jnp.uint32(0), start))[1]


def _suggested(vectors: list[Array], count: UInt[Array, ""], total: int) -> UInt[Array, "2"]:
    """Magnitudes below and above the threshold but for four standard deviations: those of a sample in regular steps."""
    step = -(-total // SAMPLE)
    sample = jnp.sort(jnp.concatenate([_magnitude(x[::step]) for x in vectors]))
    rank = len(sample) * (1 - count.astype(jnp.float32) / total)
    reach = 4 * jnp.sqrt(rank * (1 - rank / len(sample))) + 1
    below, above = (jnp.clip(r, 0, len(sample) - 1).astype(jnp.int32) for r in (rank - reach, rank + reach))
    return jnp.stack([sample[below], sample[above] + 1])


def _magnitude(x: Array) -> UInt[Array, "..."]:
    """The bit pattern of |x|. Integers all the way: comparisons of floats take subnormal numbers for zeros."""
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return bits & bits.dtype.type(2 ** (8 * x.dtype.itemsize - 1) - 1)


def _places(vectors: list[Array]) -> list[UInt[Array, " entries"]]:
    """The position of each entry among all."""
    places, start = [], 0
    for x in vectors:
        places.append(jax.lax.iota(jnp.uint32, x.size) + jnp.uint32(start))
        start += x.size
    return places


def _count(masks: list[Bool[Array, "..."]]) -> UInt[Array, ""]:
    return functools.reduce(jnp.add, map(count_true, masks))


def count_true(mask: Bool[Array, " entries"]) -> UInt[Array, ""]:
    """Of the entries that are True: in bytes first, which on CPUs is ten times as fast."""
    whole = mask.size // GROUP * GROUP
    groups = mask[:whole].reshape(-1, GROUP).sum(1, dtype=jnp.uint8)
    return groups.sum(dtype=jnp.uint32) + mask[whole:].sum(dtype=jnp.uint32)
