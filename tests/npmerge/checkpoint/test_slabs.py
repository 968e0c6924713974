"""Flat ranges as rectangles: all ranges of small shapes, against NumPy's own flat order."""

import itertools

import numpy as np
import pytest

from npmerge.checkpoint.slabs import rectangles, slabs
from npmerge.checkpoint.stored import Entry


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 4), (3, 1), (2, 3, 4), (1, 1, 2), (2, 1, 3, 2)])
def test_every_range_is_what_lies_there_in_few_pieces(shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
    entry = Entry("x", "I32", shape)
    for start, stop in itertools.combinations(range(array.size + 1), 2):
        got = slabs(lambda index: array[index], entry, start, stop - start)
        assert got.tolist() == list(range(start, stop))
        assert len(rectangles(shape, start, stop - start)) <= max(1, 2 * len(shape) - 1)
    assert rectangles(shape, 0, 0) == []
