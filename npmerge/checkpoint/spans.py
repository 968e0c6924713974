"""Models whose tensors lie as plain bytes in files: what every such format shares once its header has been read."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from alignment.checks import unknown
from npmerge.checkpoint.dtypes import CODES, DTYPES
from npmerge.checkpoint.errors import CheckpointError, short
from npmerge.checkpoint.headers import MOST_AXES
from npmerge.checkpoint.stored import Entry, StoredModel

ALIGNED = 64
"""Bytes at a multiple of which arrays begin: XLA takes such memory without a copy."""


@dataclass(frozen=True)
class Span:
    """Bytes of a file.

    Attributes:
        path: of the file.
        offset: at which they begin.
        nbytes: how many.
    """

    path: Path
    offset: int
    nbytes: int


class NamedModel(StoredModel):
    """A model of one file or folder in any format: `_part` reads, and what it is asked for has been checked.

    Attributes:
        file: that is read; `path` may be the folder that it stands for.
        notes: what a reader of the file has to know, a sentence each: the container found, what was left out or converted.
    """

    def __init__(self, path: Path, entries: Iterable[Entry], notes: Iterable[str] = ()):
        """Raises CheckpointError for two tensors with one name, or none at all."""
        found: dict[str, Entry] = {}
        for entry in entries:
            if entry.name in found:
                raise CheckpointError(path, "stands there twice", entry.name)
            found[entry.name] = entry
        if not found:
            raise CheckpointError(path, "has no tensors")
        self.path = self.file = path
        self.notes, self.config = tuple(notes), MappingProxyType({})
        self.entries: Mapping[str, Entry] = MappingProxyType(found)

    def read(self, name: str, start: int = 0, count: int | None = None) -> np.ndarray:
        """See `StoredModel.read`. Raises CheckpointError also for a name or a range that the model has not."""
        if name not in self.entries:
            raise CheckpointError(self.path, unknown("tensor", name, self.entries))
        entry = self.entries[name]
        count = entry.size - start if count is None else count
        if start < 0 or count < 0 or start + count > entry.size:
            raise CheckpointError(self.path, f"has {entry.size} entries, asked for {count} from {start} on", name)
        if count == 0:
            return np.empty(0, DTYPES[entry.dtype])
        try:
            return self._part(name, start, count)
        except OSError as error:
            raise CheckpointError(self.path, f"cannot be read: {error.strerror or error}", name) from None
        except MemoryError:
            raise CheckpointError(self.path, f"does not fit into memory ({count} entries)", name) from None

    @property
    def read_from(self) -> tuple[Path, ...]:
        """See `StoredModel.read_from`."""
        return (self.file,)

    def _part(self, name: str, start: int, count: int) -> np.ndarray:
        raise NotImplementedError


class SpanModel(NamedModel):
    """A model whose tensors are bytes of files, each in one or several pieces."""

    def __init__(self, path: Path, tensors: Iterable[tuple[Entry, tuple[Span, ...]]], notes: Iterable[str] = ()):
        tensors = list(tensors)
        super().__init__(path, (entry for entry, _ in tensors), notes)
        self._spans = {entry.name: spans for entry, spans in tensors}

    def _part(self, name: str, start: int, count: int) -> np.ndarray:
        dtype = DTYPES[self.entries[name].dtype]
        buffer = empty(count * dtype.itemsize)
        gather(self._spans[name], start * dtype.itemsize, buffer)
        return buffer.view(dtype)


def checked_entry(path: Path, name: str, dtype: str, shape: Iterable[Any], nbytes: int | None = None) -> Entry:
    """A tensor as a header describes it.

    Args:
        path: of the file, for messages.
        name: of the tensor.
        dtype: as NumPy calls it.
        shape: of integers, if the header is right.
        nbytes: that it has; None where the format does not say.

    Raises:
        CheckpointError: a dtype that is not read, a shape that is none or absurd, bytes that do not fill it.
    """
    shape = tuple(shape)
    if dtype not in CODES:
        raise CheckpointError(path, f"has the dtype {dtype[:40]!r}, expected one of {', '.join(CODES)}", name)
    if len(shape) > MOST_AXES or not all(type(x) is int and 0 <= x < 2**60 for x in shape):
        raise CheckpointError(path, f"has the shape {short(shape, 80)}, expected at most {MOST_AXES} lengths below 2^60", name)
    if math.prod(max(x, 1) for x in shape) >= 2**60:
        raise CheckpointError(path, f"has the shape {short(shape, 80)}, which no memory holds", name)
    entry = Entry(name, CODES[dtype], shape)
    if nbytes is not None and nbytes != entry.nbytes:
        raise CheckpointError(path, f"({dtype} {short(shape, 80)}) needs {entry.nbytes} bytes, has {nbytes}", name)
    return entry


def optional(module: str, extra: str, path: Path) -> ModuleType:
    """A package that only some have. Raises CheckpointError that says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise CheckpointError(path, f'needs the package {module}: pip install "npmerge[{extra}]" ({error})') from None


def guarded(path: Path, what: str, read: Callable[[], Any], *errors: type[Exception]) -> Any:
    """The result of a reader of another package, whose errors are those of a file that is not `what`."""
    known: tuple[type[Exception], ...] = (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        RuntimeError,
        OverflowError,
        RecursionError,
    )
    try:
        return read()
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(path, f"cannot be read, or is not {what}: {error.strerror or str(error)[:200]}") from None
    except (*known, *errors) as error:
        raise CheckpointError(path, f"is not {what}, or it is damaged: {str(error)[:200]}") from None


def empty(nbytes: int) -> np.ndarray:
    """Bytes of no particular value, aligned as XLA likes them."""
    raw = np.empty(nbytes + ALIGNED, np.uint8)
    begin = -raw.ctypes.data % ALIGNED
    return raw[begin : begin + nbytes]


def gather(spans: tuple[Span, ...], begin: int, buffer: np.ndarray) -> None:
    """Fill a buffer with what lies from byte `begin` on in the spans laid end to end.

    Raises CheckpointError for a file that has become shorter.
    """
    done = position = 0
    for span in spans:
        skip = max(0, begin + done - position)
        wanted = min(span.nbytes - skip, len(buffer) - done)
        if wanted > 0:
            _fill(span.path, buffer[done : done + wanted], span.offset + skip)
            done += wanted
        position += span.nbytes


def _fill(path: Path, buffer: np.ndarray, offset: int) -> None:
    """Read the bytes from an offset on; a file that has become shorter since its header was read is an error."""
    done = 0
    try:
        with path.open("rb", buffering=0) as file:
            while done < len(buffer):
                got = os.preadv(file.fileno(), [buffer[done:].data], offset + done)
                if not got:
                    left = len(buffer) - done
                    raise CheckpointError(path, f"is truncated: it ends at byte {offset + done}, {left} are missing")
                done += got
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from None
