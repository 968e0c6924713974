"""The entries of largest magnitude of a tensor that is read block by block, exactly and without sorting.

As `npmerge.selection`, which has whole trees in memory: the threshold is an integer, the bit pattern of |x|, between bounds
that a sample suggests, and is found by counting. Here a pass over the tensor counts at several thresholds at once, for every
row (such as a model) at once: one or two passes over 16-bit models, whose differences take few values, some four over float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from npmerge.selection import count_true
from npmerge.stream.arrays import Padded, padded, precise, vectors
from npmerge.stream.blocks import Block, Tensor

TOP = 2**31
"""Above all keys."""

SAMPLE = 65536
"""Entries that tell about where a threshold is."""

TRIED = 8
"""Thresholds that are counted at in one pass for each number of entries."""

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
    suggested = _suggested(np.tile(sample, (targets, 1)), flat / tensor.size, exact=sample.shape[1] == tensor.size)

    def count(tried: Int[np.ndarray, "all tried"]) -> Int[np.ndarray, "blocks all tried"]:
        thresholds = np.moveaxis(tried.reshape(targets, rows, -1), 0, 1).reshape(rows, -1).astype(np.int32)
        found = np.stack(tensor.each(lambda block: counts_of(keys, block, thresholds))).astype(np.int64)
        return np.moveaxis(found.reshape(len(found), rows, targets, -1), 2, 1).reshape(len(found), *tried.shape)

    threshold, kept, above = _search(flat, lengths, suggested, count)
    tied = kept - above
    missing = flat - above.sum(0)
    before = np.cumsum(tied, 0) - tied
    return Selected(threshold, tied, np.clip(missing - before, 0, tied), starts)


def cuts(selected: Selected, keys: Keys, block: Block) -> Int32[np.ndarray, " rows"]:
    """The position in a block from which on entries at the threshold are left out."""
    place = int(np.searchsorted(selected.starts, block.start))
    size = len(block.models[0])
    found = np.where(selected.quota[place] < selected.tied[place], 0, size).astype(np.int32)
    partly = np.flatnonzero((selected.quota[place] > 0) & (found == 0))  # in one block of each row at most
    if len(partly):
        own = keys_of(keys, block)
        for row in partly:
            at = np.flatnonzero(own[row % len(own)] == selected.threshold[row])
            found[row] = at[selected.quota[place, row] - 1] + 1
    return found


def selected_of(keys: Int32[Array, " entries"], threshold: Int32[Array, ""], cut: Int32[Array, ""]) -> Bool[Array, " entries"]:
    """Which entries of a block a row selects. Traceable."""
    return (keys > threshold) | ((keys == threshold) & (jax.lax.iota(jnp.int32, keys.size) < cut))


def _search(
    wanted: Int[np.ndarray, " rows"],
    lengths: Int[np.ndarray, " blocks"],
    suggested: Int[np.ndarray, "rows tried"],
    count: Callable[[Int[np.ndarray, "rows tried"]], Int[np.ndarray, "blocks rows tried"]],
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, "blocks rows"], Int[np.ndarray, "blocks rows"]]:
    """A threshold for each row, how many entries of each block are not below it, and how many of those are above the others.

    The search ends where the first number is the wanted one, which takes all, or at one key, to choose from its entries.
    """
    rows = np.arange(len(wanted))
    low, high = np.zeros_like(wanted), np.full_like(wanted, TOP)
    low[wanted == 0] = TOP - 1
    kept = np.repeat(lengths[:, None], len(wanted), 1)
    above = np.zeros_like(kept)
    kept[:, wanted == 0] = 1  # which is more than wanted, and nothing to search
    tried = suggested
    while ((kept.sum(0) != wanted) & (high - low > 1)).any():
        tried = np.sort(np.clip(tried, low[:, None] + 1, np.maximum(high - 1, low + 1)[:, None]), 1)
        counted = count(tried)
        enough = (counted.sum(0) >= wanted[:, None]).sum(1)
        rise, fall = (enough > 0) & (high - low > 1), (enough < tried.shape[1]) & (high - low > 1)
        at, beyond = np.maximum(enough - 1, 0), np.minimum(enough, tried.shape[1] - 1)
        low, kept = np.where(rise, tried[rows, at], low), np.where(rise, counted[:, rows, at], kept)
        high, above = np.where(fall, tried[rows, beyond], high), np.where(fall, counted[:, rows, beyond], above)
        tried = _between(low, high, kept.sum(0), above.sum(0), wanted)
    return low, kept, above


def _between(
    low: Int[np.ndarray, " rows"],
    high: Int[np.ndarray, " rows"],
    kept: Int[np.ndarray, " rows"],
    above: Int[np.ndarray, " rows"],
    wanted: Int[np.ndarray, " rows"],
) -> Int[np.ndarray, "rows tried"]:
    """Around where interpolation puts the threshold, as far as random entries would reach, and two that divide the rest."""
    width, number = (high - low).astype(float), np.maximum(kept - above, 1)
    centre = low + width * (kept - wanted) / number
    reach = width / (2 * np.sqrt(number))
    near = centre[:, None] + reach[:, None] * np.array([-4, -1.2, -0.3, 0.3, 1.2, 4])
    apart = low[:, None] + width[:, None] * np.array([1 / 3, 2 / 3])
    return np.concatenate([near, apart], 1).astype(np.int64)


def _suggested(sample: Int[np.ndarray, "rows size"], share: Float[np.ndarray, " rows"], exact: bool) -> np.ndarray:
    """Magnitudes about the threshold, four standard deviations and a fourth of that away, and the next larger numbers.

    Together they end the search where many magnitudes are equal.
    """
    size = sample.shape[1]
    rank = size * (1 - share)
    reach = 0 if exact else 4 * np.sqrt(rank * (1 - rank / size)) + 1
    places = rank[:, None] + np.multiply.outer(reach + 0 * rank, [-1, -0.25, 0.25, 1])
    at = np.clip(np.round(places), 0, size - 1).astype(np.int64)
    values = np.take_along_axis(np.sort(sample, 1).astype(np.int64), at, 1)
    return np.concatenate([values, values + 1], 1)


def _sample(tensor: Tensor, keys: Keys) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys of entries in regular steps, and where blocks begin and how long they are."""
    step = -(-tensor.size // SAMPLE)

    def of(block: Block) -> tuple[np.ndarray, int, int]:
        taken = slice(-block.start % step, None, step)
        base = None if block.base is None else block.base[taken]
        own = keys_of(keys, Block(tuple(x[taken] for x in block.models), base, 0))
        return own, block.start, len(block.models[0])

    found, starts, lengths = zip(*tensor.each(of), strict=True)
    return np.concatenate(found, 1), np.array(starts), np.array(lengths)


def keys_of(keys: Keys, block: Block) -> Int32[np.ndarray, "rows entries"]:
    """The keys of a block."""
    with precise(block):
        return np.asarray(_stacked(keys, padded(block)))[:, : len(block.models[0])]


def counts_of(keys: Keys, block: Block, thresholds: Int32[np.ndarray, "rows tried"]) -> Int[np.ndarray, "rows tried"]:
    """How many entries of each row are not below each threshold."""
    with precise(block):
        return np.asarray(_not_below(keys, padded(block), thresholds))


_stacked = jax.jit(lambda keys, block: jnp.stack(keys(block)), static_argnums=0)


def _not_below_of(keys: Keys, block: Padded, thresholds: Int32[Array, "rows tried"]) -> Array:
    own = keys(block)
    return jnp.stack([jnp.stack([count_true(x >= t) for t in thresholds[k]]) for k, x in enumerate(own)])


_not_below = jax.jit(_not_below_of, static_argnums=0)
