"""Tensors of several models as blocks, held in memory if they are small and read again for each pass if not."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.stored import StoredModel
from npmerge.recipe.plan import Source, Step
from npmerge.stream import blocks
from npmerge.stream.blocks import Block
from npmerge.stream.rows import dtype_of_rows, read_rows
from npmerge.stream.workers import Workers

T = TypeVar("T")


class StreamedTensor:
    """One tensor of all models that a step merges; a `Tensor` as kernels see it.

    Attributes:
        step: what is done with it.
        size: its entries.
    """

    def __init__(self, models: Sequence[StoredModel], step: Step, workers: Workers, room: int):
        """Nothing is read yet.

        Args:
            models: of the plan.
            step: what is done with the tensor.
            workers: that read and compute.
            room: bytes that may be kept between two passes.
        """
        self.step, self.size = step, step.entry.size
        self._models, self._workers = models, workers
        self._keep = self.size * bytes_of_entry(models, step) <= room
        self._held: dict[int, Block] = {}

    def each(self, function: Callable[[Block], T]) -> list[T]:
        """`function` of every block, on several threads; the results in the order of the blocks."""
        return list(self._workers.ordered(lambda start: function(self._block(start)), self._starts()))

    def last(self, function: Callable[[Block], T]) -> Iterator[T]:
        """As `each`, one result after the other; blocks that were kept are let go."""
        return self._workers.ordered(lambda start: function(self._block(start, let_go=True)), self._starts())

    def whole(self) -> Block:
        """All entries at once."""
        return self._read(0, self.size)

    def _starts(self) -> range:
        return range(0, max(self.size, 1), blocks.BLOCK)

    def _block(self, start: int, *, let_go: bool = False) -> Block:
        block = self._held.get(start) or self._read(start)
        if let_go:
            self._held.pop(start, None)
        elif self._keep:
            self._held[start] = block
        return block

    def _read(self, start: int, count: int | None = None) -> Block:
        count = min(blocks.BLOCK, self.size - start) if count is None else count
        read = partial(read_source, self._models, start=start, count=count)
        base = None if self.step.base is None else read(self.step.base)
        return Block(tuple(map(read, self.step.sources)), base, start)


def read_source(models: Sequence[StoredModel], source: Source, start: int, count: int) -> np.ndarray:
    """Entries of a source from a flat position on, of its stored dtype."""
    if source.rows is not None:
        return read_rows(models, source.rows, start, count)
    return models[source.model].read(source.name, start, count)


def bytes_of_entry(models: Sequence[StoredModel], step: Step) -> int:
    """Bytes that one entry takes in all sources of a step together."""
    return sum(_dtype(models, source).itemsize for source in step.inputs)


def _dtype(models: Sequence[StoredModel], source: Source) -> np.dtype:
    if source.rows is not None:
        return dtype_of_rows(models, source.rows)
    return DTYPES[models[source.model].entries[source.name].dtype]
