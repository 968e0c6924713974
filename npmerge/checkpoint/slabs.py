"""Flat ranges of tensors that other packages index by axes."""

import math
from collections.abc import Callable

import numpy as np

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.spans import empty
from npmerge.checkpoint.stored import Entry

Index = tuple[int | slice, ...]


def slabs(read: Callable[[Index], np.ndarray], entry: Entry, start: int, count: int) -> np.ndarray:
    """`count` entries from flat position `start` on, read in as few rectangles as there are: at most two for each axis.

    Args:
        read: the part of the tensor at an index; an integer takes its axis away.
        entry: of the tensor.
        start: not negative.
        count: so that the range ends within the tensor.
    """
    dtype = DTYPES[entry.dtype]
    buffer = empty(count * dtype.itemsize).view(dtype)
    done = 0
    for index, size in rectangles(entry.shape, start, count):
        buffer[done : done + size] = np.asarray(read(index)).reshape(-1)
        done += size
    return buffer


def rectangles(shape: tuple[int, ...], start: int, count: int) -> list[tuple[Index, int]]:
    """The rectangles that a flat range is made of, in its order, each with its number of entries."""
    if count == 0:
        return []
    if not shape:
        return [((), 1)]
    row = math.prod(shape[1:])
    first, last = start // row, (start + count - 1) // row
    if first == last and row != count:
        return [((first, *index), size) for index, size in rectangles(shape[1:], start - first * row, count)]
    found: list[tuple[Index, int]] = []
    whole, stop = -(-start // row), (start + count) // row
    if head := min(whole * row - start, count):
        found += [((first, *index), size) for index, size in rectangles(shape[1:], start - first * row, head)]
    if stop > whole:
        found.append(((slice(whole, stop), *(slice(None) for _ in shape[1:])), (stop - whole) * row))
    if tail := start + count - max(stop, whole) * row:
        found += [((last, *index), size) for index, size in rectangles(shape[1:], 0, tail)]
    return found
