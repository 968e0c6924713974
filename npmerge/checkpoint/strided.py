"""Models whose tensors are views of shared storages: offsets, strides and sizes of strangers are checked, files are mapped."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npmerge.checkpoint.dtypes import CODES, DTYPES
from npmerge.checkpoint.errors import CheckpointError, short
from npmerge.checkpoint.headers import MOST_AXES
from npmerge.checkpoint.rebuilt import Strided
from npmerge.checkpoint.slabs import Index, slabs
from npmerge.checkpoint.spans import NamedModel, Span, checked_entry, empty, gather
from npmerge.checkpoint.stored import Entry
from npmerge.checkpoint.zips import Inflater, Member

MOST_GROWTH = 16
"""Times the bytes of a file that its tensors may take together, beside `FREE`: expanded tensors repeat what is stored."""

FREE = 2**28


@dataclass(frozen=True)
class Region:
    """The bytes of a storage.

    Attributes:
        span: where they lie; of the compressed ones its length is that of what they hold.
        member: of the archive, where they are compressed.
    """

    span: Span
    member: Member | None = None


@dataclass(frozen=True)
class _View:
    """A tensor that has been checked."""

    entry: Entry
    key: str
    begin: int
    strides: tuple[int, ...]


class StridedModel(NamedModel):
    """A model of one file of PyTorch.

    Attributes:
        notes: the container found, and what was left out.
    """

    def __init__(
        self,
        path: Path,
        tensors: Iterable[tuple[str, Strided]],
        regions: Mapping[str, Region],
        notes: Iterable[str],
        *,
        swapped: bool = False,
    ):
        """Checks every tensor against the storages, by key.

        Args:
            path: of the file.
            tensors: with their names.
            regions: the storages that there are.
            notes: as above.
            swapped: whether the bytes of each number lie in the order that this machine does not use.

        Raises:
            CheckpointError: what `NamedModel` and `checked_entry` raise; a storage that is missing or too short, a tensor that
                reaches beyond its storage, tensors that take far more bytes than the file.
        """
        self._views = [_checked(path, name, x, regions) for name, x in tensors]
        super().__init__(path, (x.entry for x in self._views), notes)
        self._by_name = {x.entry.name: x for x in self._views}
        total, most = sum(x.entry.nbytes for x in self._views), MOST_GROWTH * path.stat().st_size + FREE
        if total > most:
            raise CheckpointError(path, f"has tensors of {total} bytes, many times what is stored: expanded views?")
        self._regions, self._swapped = regions, swapped
        self._inflaters = {key: Inflater(path, x.member) for key, x in regions.items() if x.member is not None}

    def _part(self, name: str, start: int, count: int) -> np.ndarray:
        view = self._by_name[name]
        dtype = DTYPES[view.entry.dtype]
        if view.strides == _contiguous(view.entry.shape):
            buffer = empty(count * dtype.itemsize)
            self._fill(view.key, view.begin + start * dtype.itemsize, buffer)
            found = buffer.view(dtype)
        else:
            found = self._gathered(view, start, count)
        return _swap(found) if self._swapped else found

    def _fill(self, key: str, begin: int, buffer: np.ndarray) -> None:
        if key in self._inflaters:
            self._inflaters[key].read(begin, buffer)
        else:
            gather((self._regions[key].span,), begin, buffer)

    def _gathered(self, view: _View, start: int, count: int) -> np.ndarray:
        """A part of a tensor whose entries do not lie one behind the other: of a map of the file, unless it is compressed."""
        dtype = DTYPES[view.entry.dtype]
        reach = _reach(view.entry.shape, view.strides) * dtype.itemsize
        if view.key in self._inflaters:
            source = empty(reach)
            self._fill(view.key, view.begin, source)
        else:
            source = self._mapped(view, reach)
        strides = [x * dtype.itemsize for x in view.strides]
        whole: np.ndarray = np.ndarray(view.entry.shape, dtype, source, 0, strides)

        def part(index: Index) -> np.ndarray:
            return whole[index]

        return slabs(part, view.entry, start, count)

    def _mapped(self, view: _View, nbytes: int) -> np.ndarray:
        span = self._regions[view.key].span
        end = span.offset + view.begin + nbytes
        if span.path.stat().st_size < end:
            raise CheckpointError(span.path, f"is truncated: it has become shorter than {end} bytes", view.entry.name)
        return np.memmap(span.path, np.uint8, "r", span.offset + view.begin, (nbytes,))


def _checked(path: Path, name: str, tensor: Strided, regions: Mapping[str, Region]) -> _View:
    shape, strides, offset, storage = tensor.shape, tensor.strides, tensor.offset, tensor.storage
    if not isinstance(shape, (tuple, list)) or not isinstance(strides, (tuple, list)) or len(shape) != len(strides):
        raise CheckpointError(path, "has a damaged shape or damaged strides", name)
    if len(shape) > MOST_AXES:
        raise CheckpointError(
            path, f"has the shape {short(shape[:8])} of {len(shape)} axes, expected {MOST_AXES} at most", name
        )
    entry = checked_entry(path, name, tensor.dtype, shape)
    if not all(type(x) is int and 0 <= x < 2**60 for x in (*strides, offset)):
        raise CheckpointError(path, f"has the strides {short(tuple(strides)[:8])}, expected lengths, and an offset", name)
    if storage.key not in regions:
        raise CheckpointError(path, f"lies in the storage {short(storage.key)}, which is missing", name)
    stored, size = DTYPES[CODES[storage.dtype]].itemsize, DTYPES[entry.dtype].itemsize
    region = regions[storage.key]
    if storage.whole * stored > region.span.nbytes:
        raise CheckpointError(path, f"needs a storage of {storage.whole * stored} bytes, has {region.span.nbytes}", name)
    end = (offset + _reach(entry.shape, strides)) * size
    if end > storage.size * stored:
        raise CheckpointError(path, f"ends at byte {end} of a storage of {storage.size * stored}", name)
    strides = tuple(strides)
    plain = _contiguous(entry.shape)
    used = all(a == b or n == 1 for a, b, n in zip(strides, plain, entry.shape, strict=True))
    return _View(entry, storage.key, storage.base * stored + offset * size, plain if used else strides)


def _reach(shape: Iterable[int], strides: Iterable[int]) -> int:
    """Entries from the first of a tensor to behind its last."""
    shape = tuple(shape)
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _swap(values: np.ndarray) -> np.ndarray:
    """Numbers with their bytes in the other order."""
    size = values.dtype.itemsize // (2 if values.dtype.kind == "c" else 1)
    return values.view(f"u{size}").byteswap(inplace=True).view(values.dtype)
