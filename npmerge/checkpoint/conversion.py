"""A checkpoint written in another format, piece by piece; the result appears whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from npmerge.checkpoint.dtypes import CODES, DTYPES, FLOATS
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.partial import sync, sync_folder
from npmerge.checkpoint.stored import Entry, StoredModel
from npmerge.checkpoint.writer import ModelWriter

PIECE = 2**22
"""Bytes of a tensor that are in memory at a time."""

NAMES = tuple(DTYPES[code].name for code in FLOATS)
"""What `--dtype` may be; only tensors of these dtypes are converted."""


@dataclass
class Pieces:
    """The tensors of a model as they are to be written.

    Attributes:
        model: that is read.
        dtype: of floating-point tensors; None for that of each.
        advance: called with the bytes that have been read.
        infinite: entries that were finite and are not in the new dtype, by tensor.
    """

    model: StoredModel
    dtype: str | None = None
    advance: Callable[[int], None] = lambda nbytes: None
    infinite: dict[str, int] = field(default_factory=dict)

    def entries(self) -> list[Entry]:
        """The tensors, in the order in which they lie."""
        return [self._converted(x) for x in self.model.entries.values()]

    def read(self, entry: Entry) -> Iterator[np.ndarray]:
        """The values of one of `entries`, flat, in pieces."""
        stored = DTYPES[self.model.entries[entry.name].dtype]
        dtype, step = DTYPES[entry.dtype], max(PIECE // stored.itemsize, 1)
        for start in range(0, entry.size, step):
            piece = self.model.read(entry.name, start, min(step, entry.size - start))
            yield piece if piece.dtype == dtype else self.cast(entry.name, piece, dtype)
            self.advance(piece.nbytes)

    def _converted(self, entry: Entry) -> Entry:
        return entry if self.dtype is None or entry.dtype not in FLOATS else replace(entry, dtype=CODES[self.dtype])

    def cast(self, name: str, piece: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Values in another dtype, rounded once; those that become infinite are counted."""
        with np.errstate(all="ignore"):
            found = piece.astype(dtype)
            lost = np.count_nonzero(np.isinf(found) & ~np.isinf(piece))
        if lost:
            self.infinite[name] = self.infinite.get(name, 0) + int(lost)
        return found


class View(StoredModel):
    """A model in the dtypes of `Pieces`, for writers that read models."""

    def __init__(self, pieces: Pieces):
        self.path, self.config, self._pieces = pieces.model.path, pieces.model.config, pieces
        self.entries: Mapping[str, Entry] = {x.name: x for x in pieces.entries()}

    def read(self, name: str, start: int = 0, count: int | None = None) -> np.ndarray:
        """See `StoredModel.read`."""
        found, dtype = self._pieces.model.read(name, start, count), DTYPES[self.entries[name].dtype]
        self._pieces.advance(found.nbytes)
        return found if found.dtype == dtype else self._pieces.cast(name, found, dtype)


def write_safetensors(
    out: Path,
    pieces: Pieces,
    metadata: Mapping[str, str],
    shard_bytes: int | None = None,
    finish: Callable[[Path], list[str]] = lambda folder: [],
) -> list[str]:
    """Write one file `.safetensors`, or a folder of them with an index.

    Args:
        out: of the result; what has the name is replaced.
        pieces: the tensors.
        metadata: texts of the files' headers.
        shard_bytes: the most that a file of a folder takes; None for one file.
        finish: puts what else belongs to a folder into it.

    Returns:
        What `finish` says.

    Raises:
        ValueError: a disk that refuses or has too little room; nothing is left then, and what was at `out` is as it was.
    """
    single = out.suffix == ".safetensors"
    with _beside(out) as folder:
        folder.mkdir()
        writer = ModelWriter(folder, pieces.entries(), metadata, None if single else shard_bytes)
        try:
            for entry in pieces.entries():
                _put(writer, entry, pieces.read(entry))
            writer.finish()
        finally:
            writer.close()
        notes = [] if single else finish(folder)
        sync_folder(folder)
        os.replace(folder / "model.safetensors", out) if single else _moved(folder, out)  # noqa: PTH105
    return notes


def write_npz(out: Path, pieces: Pieces) -> None:
    """Write an archive of NumPy. Raises ValueError if the disk refuses."""
    from npmerge.checkpoint import npz

    with _beside(out) as beside:
        with beside.open("wb") as file:
            npz.write(file, View(pieces), pieces.read)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, out)  # noqa: PTH105


def write_orbax(out: Path, pieces: Pieces) -> None:
    """Write a checkpoint of Orbax. Raises ValueError if the disk refuses, and for names that Orbax cannot hold."""
    from npmerge.checkpoint.orbax_writer import write

    with _beside(out, hidden="") as beside:  # Orbax overlooks names that begin with a dot
        write(beside, View(pieces))
        sync_folder(beside)
        pieces.advance(0)  # the last moment at which who listens can stop it
        _moved(beside, out)


def _put(writer: ModelWriter, entry: Entry, values: Iterator[np.ndarray]) -> None:
    start = 0
    for piece in values:
        writer.write(entry.name, start, piece)
        start += piece.nbytes


@contextmanager
def _beside(out: Path, hidden: str = ".") -> Iterator[Path]:
    """A name of its own beside the result, of which nothing is left in the end."""
    out = out.absolute()
    if not out.parent.is_dir():
        raise ValueError(f"cannot write {out}: its folder does not exist")
    beside = out.with_name(f"{hidden}{out.name}-{uuid.uuid4().hex}")
    try:
        yield beside
        sync(out.parent)
    except CheckpointError:
        raise
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        for left in out.parent.glob(f"{beside.name}*"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _moved(folder: Path, out: Path) -> None:
    """Give a folder its name; one that has it goes only when the new one is there, or comes back."""
    old = folder.with_name(f"{folder.name}-old")
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
