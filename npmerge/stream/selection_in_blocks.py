"""The entries of largest magnitude of a tensor that is read block by block, exactly and without sorting.

As `npmerge.task_vectors.selection`, which has whole trees in memory: the threshold is an integer, the bit pattern of |x|,
between bounds that a sample suggests, and is found by counting. Here a pass over the tensor counts at several thresholds at
once, for every row (such as a model) at once: one or two passes over 16-bit models, whose differences take few values, some
four over float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from npmerge.stream.arrays import Padded, padded, precise, vectors
from npmerge.stream.blocks import Block, Tensor
from npmerge.task_vectors.selection import count_each

TOP = 2**31
"""Above all keys."""

SAMPLE = 65536
"""Entries that tell about where a threshold is."""

RUN = 2**15
"""Entries that are counted together to find a place among them."""

TOGETHER = 4
"""Thresholds that are counted at in one pass over a block."""

Keys = Callable[[Padded], list[Int32[Array, " entries"]]]
"""What entries are compared by, 0 to 2^31 - 1: rows of a block, traceable."""


class Selected(NamedTuple):
    """The largest entries of each row: those above the threshold, and of those at it the first of each block.

    Attributes:
        threshold: of each row.
        tied: entries at the threshold in each block.
        quota: how many of them are selected.
        starts: where blocks begin.
    """

    threshold: Int[np.ndarray, " rows"]
    tied: Int[np.ndarray, "blocks rows"]
    quota: Int[np.ndarray, "blocks rows"]
    starts: Int[np.ndarray, " blocks"]


def magnitudes(block: Padded) -> list[Int32[Array, " entries"]]:
    """The bit patterns of |vectors| in float32, one row per model."""
    return [bits_of(x) for x in vectors(block)]


def bits_of(x: Float[Array, " entries"]) -> Int32[Array, " entries"]:
    """The bit pattern of |x|, which grows with it. Comparisons of floats would take subnormal numbers for zeros."""
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) & jnp.int32(TOP - 1)


def select(tensor: Tensor, keys: Keys, wanted: Int[np.ndarray, "targets rows"]) -> Selected:
    """The first `wanted` entries of each row by their keys, of equal ones the first; several targets at once.

    Rows of the result are those of the first target, then those of the second.
    """
    targets, rows = wanted.shape
    flat = wanted.reshape(-1)
    sample, starts, lengths = _sample(tensor, keys)
    ordered = np.tile(np.sort(sample, 1).astype(np.int64), (targets, 1))

    def count(tried: Int[np.ndarray, "all tried"]) -> Int[np.ndarray, "blocks all tried"]:
        thresholds = np.moveaxis(tried.reshape(targets, rows, -1), 0, 1).reshape(rows, -1).astype(np.int32)
        found = np.stack(tensor.each(lambda block: counts_of(keys, block, thresholds))).astype(np.int64)
        return np.moveaxis(found.reshape(len(found), rows, targets, -1), 2, 1).reshape(len(found), *tried.shape)

    threshold, kept, above = _search(flat, lengths, ordered, count)
    tied = kept - above
    missing = flat - above.sum(0)
    before = np.cumsum(tied, 0) - tied
    return Selected(threshold, tied, np.clip(missing - before, 0, tied), starts)


def cuts(selected: Selected, keys: Keys, block: Block) -> Int32[np.ndarray, " rows"]:
    """The position in a block from which on entries at the threshold are left out."""
    place = int(np.searchsorted(selected.starts, block.start))
    quota, tied = selected.quota[place], selected.tied[place]
    found = np.where(quota < tied, 0, len(block.models[0])).astype(np.int32)
    if partly := np.flatnonzero((quota > 0) & (quota < tied)).tolist():  # in one block of each row at most
        own = rows_of(keys, block)
        for row in partly:
            found[row] = _behind(own[row % len(own)], int(selected.threshold[row]), int(quota[row]))
    return found


def _behind(row: Int32[np.ndarray, " entries"], threshold: int, quota: int) -> int:
    """The position behind the last of so many entries at the threshold: runs are counted, and places looked for in one only."""
    for start in range(0, len(row), RUN):
        at = row[start : start + RUN] == threshold
        here = int(np.count_nonzero(at))
        if here >= quota:
            return start + int(np.flatnonzero(at)[quota - 1]) + 1
        quota -= here
    return len(row)


def selected_of(keys: Int32[Array, " entries"], threshold: Int32[Array, ""], cut: Int32[Array, ""]) -> Bool[Array, " entries"]:
    """Which entries of a block a row selects. Traceable."""
    return (keys > threshold) | ((keys == threshold) & (jax.lax.iota(jnp.int32, keys.size) < cut))


def _search(
    wanted: Int[np.ndarray, " rows"],
    lengths: Int[np.ndarray, " blocks"],
    sample: Int[np.ndarray, "rows size"],
    count: Callable[[Int[np.ndarray, "rows tried"]], Int[np.ndarray, "blocks rows tried"]],
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, "blocks rows"], Int[np.ndarray, "blocks rows"]]:
    """A threshold for each row, how many entries of each block are not below it, and how many of those are above the others.

    The search ends where the first number is the wanted one, which takes all, or at one key, to choose from its entries.
    """
    rows = np.arange(len(wanted))
    low, high = np.where(wanted == 0, TOP - 1, 0), np.full_like(wanted, TOP)
    kept, above = np.repeat(lengths[:, None], len(wanted), 1), np.zeros((len(lengths), len(wanted)), np.int64)
    first = True
    while (going := (kept.sum(0) != wanted) & (high - low > 1)).any():
        state = zip(low, high, kept.sum(0), above.sum(0), strict=True)
        each = [_tried(row, Bracket(*here), number) for row, here, number in zip(sample, state, wanted, strict=True)]
        tried = np.sort([row[: TOGETHER if first else None] for row in each])
        first = False
        counted = count(tried)
        enough = (counted.sum(0) >= wanted[:, None]).sum(1)
        rise, fall = going & (enough > 0), going & (enough < tried.shape[1])
        at, beyond = np.maximum(enough - 1, 0), np.minimum(enough, tried.shape[1] - 1)
        low, kept = np.where(rise, tried[rows, at], low), np.where(rise, counted[:, rows, at], kept)
        high, above = np.where(fall, tried[rows, beyond], high), np.where(fall, counted[:, rows, beyond], above)
    return low, kept, above


class Bracket(NamedTuple):
    """What is known of the threshold of a row.

    Attributes:
        low: it is at least this.
        high: it is below this.
        kept: entries that are not below `low`.
        above: entries that are not below `high`.
    """

    low: int
    high: int
    kept: int
    above: int


def _tried(sample: Int[np.ndarray, " size"], bracket: Bracket, wanted: int) -> Int[np.ndarray, " tried"]:
    """Thresholds within the bracket that are worth counting at.

    The first four, with which the first pass does, are numbers of the sample, four standard deviations to either side of where
    the threshold is in it, and the next larger ones: they end the search where many magnitudes are equal. The others are where
    interpolation puts it, as far apart as random entries would be, and two that divide the rest, so that no distribution takes
    more than some twenty passes.
    """
    low, high, kept, above = bracket
    width, number = high - low, max(kept - above, 1)
    share = (kept - wanted) / number
    near = low + width * (share + np.array([-0.6, 0.6]) / np.sqrt(number))
    first, last = np.searchsorted(sample, [low, high])
    if (size := last - first) > 0:
        reach = 4 * np.sqrt(size * share * (1 - share)) + 1 if size < number else 0
        ranks = np.round(first + size * share + reach * np.array([-1, 1])).astype(np.int64)
        known = sample[np.clip(ranks, first, last - 1)]
        found = np.concatenate([known, known + 1])
    else:
        found = low + width * (share + np.array([-2, -0.15, 0.15, 2]) / np.sqrt(number))
    tried = np.concatenate([found, near, low + width * np.array([1 / 3, 2 / 3])]).astype(np.int64)
    return np.clip(tried, low + 1, max(high - 1, low + 1))


def _sample(tensor: Tensor, keys: Keys) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys of entries in regular steps, and where blocks begin and how long they are."""
    step = -(-tensor.size // SAMPLE)

    def of(block: Block) -> tuple[np.ndarray, int, int]:
        taken = slice(-block.start % step, None, step)
        base = None if block.base is None else block.base[taken]
        own = rows_of(keys, Block(tuple(x[taken] for x in block.models), base, 0))
        return np.stack(own), block.start, len(block.models[0])

    found, starts, lengths = zip(*tensor.each(of), strict=True)
    return np.concatenate(found, 1), np.array(starts), np.array(lengths)


def rows_of(keys: Keys, block: Block) -> list[Int32[np.ndarray, " entries"]]:
    """The keys of a block, one array for each row."""
    with precise(block):
        return [np.asarray(row)[: len(block.models[0])] for row in _keys(keys, padded(block))]


def counts_of(keys: Keys, block: Block, thresholds: Int32[np.ndarray, "rows tried"]) -> Int[np.ndarray, "rows tried"]:
    """How many entries of each row are not below each threshold."""
    with precise(block):
        rows = _keys(keys, padded(block))
        starts = range(0, thresholds.shape[1], TOGETHER)
        found = [[_not_below(row, own[k : k + TOGETHER]) for k in starts] for row, own in zip(rows, thresholds, strict=True)]
        return np.stack([np.concatenate(parts) for parts in found])


_keys = jax.jit(lambda keys, block: keys(block), static_argnums=0)


@jax.jit
def _not_below(row: Int32[Array, " entries"], thresholds: Int32[Array, " tried"]) -> Int[Array, " tried"]:
    """A program of its own, of one row and few thresholds, since it takes XLA long to compile.

    Where keys are computed in it too, XLA for CPUs takes nearly three times as long for both.
    """
    return count_each([row >= t for t in thresholds])
