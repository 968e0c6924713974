"""The entries of largest magnitude, exactly and without sorting."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt

from alignment.graph import PyTree

LIMIT = 2**32
"""Entries are counted in unsigned integers of 32 bits."""

SAMPLE = 16384
"""Entries that tell about where the threshold is."""

JOINED = 2**18
"""Entries that are joined to one vector: smaller leaves are many, and all that is done with each is compiled for each."""

RUNS, TERMS, GROUP = 16, 8, 16
"""Runs that entries are counted in, and the terms of a run and neighbours in them that one byte counts."""

LANES = 3
"""Thresholds that are counted in one pass, which takes little longer than one: of bytes in 32 bits one is spare."""

EVENLY = np.arange(1, LANES + 1, dtype=np.float32) / (LANES + 1)
"""Shares of a width that cut it into equal parts."""


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
    """Searched for in small leaves joined: whatever is done with each is compiled for each."""
    total = sum(x.size for x in leaves)
    joined = [jnp.concatenate([x.reshape(-1) for x in leaves[run]]) for run in _runs([x.size for x in leaves])]
    low, high, ties = _threshold(joined, count, total)
    masks = []
    for x, start in zip(leaves, _starts(leaves), strict=True):
        k = _magnitude(x)  # in the shape of the leaf, so that it becomes part of what is done with the mask
        masks.append((k >= high) | ((k >= low) & (_places(x.shape) < _within(ties, start))))
    return masks


def _runs(sizes: list[int]) -> list[slice]:
    """Neighbours in runs of at most JOINED entries; what is larger stands alone."""
    runs, start = [], 0
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or sum(sizes[start : end + 1]) > JOINED:
            runs.append(slice(start, end))
            start = end
    return runs


def _threshold(
    vectors: list[Array], count: UInt[Array, ""], total: int
) -> tuple[UInt[Array, ""], UInt[Array, ""], UInt[Array, ""]]:
    """The magnitude from which on entries are taken that are among the first so many, that of all others, and so many."""
    bits = 8 * vectors[0].dtype.itemsize
    top = jnp.asarray(2 ** (bits - 1), f"uint{bits}")

    # magnitudes and places are computed wherever they are read, as to keep them takes longer than to count them: behind a
    # barrier, or XLA would take them out of the loop
    def not_below(tried: Array) -> UInt[Array, " lanes"]:
        own, tried = jax.lax.optimization_barrier((vectors, tried))
        return _count([[_magnitude(x) >= t for t in tried] for x in own])

    found = _search(not_below, count, top, total, _suggested(vectors, count, total))

    def few(rest: Array) -> UInt[Array, " lanes"]:  # of one magnitude
        own, starts, rest = jax.lax.optimization_barrier((vectors, _starts(vectors), rest))
        masks = []
        for x, start in zip(own, starts, strict=True):
            k, p = _magnitude(x), _places(x.shape)
            masks.append([(k >= found.low) & (k < found.high) & (p < _within(total - r, start)) for r in rest])
        return _count(masks)

    # where the threshold is exact nothing is searched for: not by a condition, which several models would take together
    left = jnp.where(found.kept == count, found.kept, count - found.above)
    rest = _search(few, left, jnp.uint32(total), found.kept, jnp.uint32(EVENLY * total)).low
    return found.low, found.high, total - rest


class _Found(NamedTuple):
    """How far a search has come: `kept` entries are not below `low`, `above` are not below `high`."""

    low: UInt[Array, ""]
    high: UInt[Array, ""]
    kept: UInt[Array, ""]
    above: UInt[Array, ""]


def _search(
    counted: Callable[[Array], UInt[Array, " lanes"]],
    count: UInt[Array, ""],
    top: UInt[Array, ""],
    total: int | UInt[Array, ""],
    suggested: UInt[Array, " lanes"],
) -> _Found:
    """Where a count that falls from `total` at 0 to none at `top` is `count`, or passes it from `low` to `high` = `low` + 1.

    The first places tried are suggested; of the others every third are the quarters, so that no distribution of the entries
    takes more than three times as many passes as those alone, and all are where so few entries are left that these tell little.
    """

    def goes_on(state: tuple[Array, _Found]) -> Bool[Array, ""]:
        _, f = state
        return (f.kept != count) & (f.high - f.low > 1)

    def refine(state: tuple[Array, _Found]) -> tuple[Array, _Found]:
        step, f = state
        evenly = (step % 3 == 0) | (f.kept - f.above <= 2 * LANES)
        shares = jnp.where(evenly, EVENLY, _interpolated(f, count))
        width = f.high - f.low
        between = f.low + (shares * width.astype(jnp.float32)).astype(width.dtype)
        tried = jnp.clip(jnp.where(step == 0, suggested, between), f.low + 1, f.high - 1)
        numbers = counted(tried)
        enough = numbers >= count
        low, kept = jnp.where(enough, tried, f.low).max(), jnp.where(enough, numbers, f.kept).min()
        high, above = jnp.where(enough, f.high, tried).min(), jnp.where(enough, f.above, numbers).max()
        return step + 1, _Found(low, high, kept, above)

    start = _Found(jnp.zeros_like(top), top, jnp.asarray(total, jnp.uint32), jnp.uint32(0))
    return jax.lax.while_loop(goes_on, refine, (jnp.uint32(0), start))[1]


def _interpolated(f: _Found, count: UInt[Array, ""]) -> Float[Array, " lanes"]:
    """Shares of the width around the one where `count` is expected: to 1.5 standard deviations, and what is no line."""
    inside, wanted = (f.kept - n for n in (f.above, count))
    inside, wanted = inside.astype(jnp.float32), wanted.astype(jnp.float32)
    reach = 0.75 * jnp.sqrt(inside) + inside / 256
    return jnp.clip((wanted + jnp.linspace(-1, 1, LANES) * reach) / inside, 0, 1)


def _suggested(vectors: list[Array], count: UInt[Array, ""], total: int) -> UInt[Array, " lanes"]:
    """Magnitudes around the threshold to three standard deviations: those of a sample in regular steps."""
    step = -(-total // SAMPLE)
    sample = jnp.sort(jnp.concatenate([_magnitude(x[::step]) for x in vectors]))
    rank = len(sample) * (1 - count.astype(jnp.float32) / total)
    reach = 3 * jnp.sqrt(rank * (1 - rank / len(sample))) + 1
    ranks = rank + jnp.linspace(-1, 1, LANES) * reach
    return sample[jnp.clip(ranks, 0, len(sample) - 1).astype(jnp.int32)] + 1


def _magnitude(x: Array) -> UInt[Array, "..."]:
    """The bit pattern of |x|. Integers all the way: comparisons of floats take subnormal numbers for zeros."""
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return bits & bits.dtype.type(2 ** (8 * x.dtype.itemsize - 1) - 1)


def _places(shape: tuple[int, ...]) -> UInt[Array, "..."]:
    """The position of each entry, axis by axis: to bring a vector of positions to the shape takes far longer on CPUs."""
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    along = [jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(step) for axis, step in enumerate(steps)]
    return functools.reduce(jnp.add, along, jnp.zeros(shape, jnp.uint32))


def _starts(leaves: list[Array]) -> list[np.uint32]:
    """The position of the first entry of each."""
    return list(np.cumsum([0, *(x.size for x in leaves[:-1])]).astype(np.uint32))


def _within(ties: UInt[Array, ""], start: np.uint32 | UInt[Array, ""]) -> UInt[Array, ""]:
    """How many of the first so many are not before the start."""
    return jnp.where(ties > start, ties - start, 0)


def _count(masks: list[list[Bool[Array, " entries"]]]) -> UInt[Array, " lanes"]:
    """Of the entries that are True, the numbers in each lane, over all vectors."""
    return functools.reduce(jnp.add, map(count_each, masks))


def count_each(masks: list[Bool[Array, " entries"]]) -> UInt[Array, " masks"]:
    """How many entries of each mask are True, of four masks of one size at most.

    All in one pass, each in a byte of one integer: over terms written out first, then over groups. Sums over few neighbours
    alone take twice as long on CPUs, and a pass for each mask four times.
    """
    whole = masks[0].size // (TERMS * GROUP) * (TERMS * GROUP)
    rest = jnp.stack([m[whole:].sum(dtype=jnp.uint32) for m in masks])
    if not whole:
        return rest
    lanes = [np.uint32(8 * k) for k in range(len(masks))]
    packed = functools.reduce(jnp.add, [m.astype(jnp.uint32) << k for m, k in zip(masks, lanes, strict=True)])
    groups = functools.reduce(jnp.add, _terms(packed, whole)).reshape(-1, GROUP).sum(1, dtype=jnp.uint32)
    return rest + jnp.stack([((groups >> k) & np.uint32(255)).sum(dtype=jnp.uint32) for k in lanes])


def _terms(packed: UInt[Array, " entries"], whole: int) -> list[UInt[Array, " entries"]]:
    """Equal parts of the first `whole` entries: of several runs where they are all, so that shards add up their own."""
    if whole == packed.size and not whole % (RUNS * TERMS * GROUP):
        runs = packed.reshape(RUNS, TERMS, -1)
        return [runs[:, k].reshape(-1) for k in range(TERMS)]
    length = whole // TERMS
    return [packed[k * length : (k + 1) * length] for k in range(TERMS)]
