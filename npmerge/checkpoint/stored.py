"""Checkpoints as they lie on disk: which tensors there are and where, read piece by piece."""

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npmerge.checkpoint.dtypes import DTYPES


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint.

    Attributes:
        name: as stored.
        dtype: as safetensors calls it, such as "BF16".
        shape: of the tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its entries."""
        return self.size * DTYPES[self.dtype].itemsize


class StoredModel(abc.ABC):
    """A model on disk whose headers have been read and whose tensors have not.

    Attributes:
        path: the file or folder, as it was named.
        entries: by name, in the order in which they lie on disk.
        config: the content of `config.json`; empty where there is none.
        notes: what a reader of the file has to know, a sentence each: the container found, what was left out or converted.
        format: that the files are in.
        called: what people call it, where that is not its path.
    """

    path: Path
    entries: Mapping[str, Entry]
    config: Mapping[str, Any]
    notes: Sequence[str] = ()
    format: str = "safetensors"
    called: str = ""

    @property
    def name(self) -> str:
        """What people call it: its path, unless it has been made on the way and has no lasting one."""
        return self.called or str(self.path)

    @property
    def read_from(self) -> tuple[Path, ...]:
        """The files that hold its tensors, or the folder where the format is one of many files."""
        return (self.path,)

    @property
    def folder(self) -> Path:
        """The folder that what belongs to it, such as its tokenizer, lies in."""
        return self.path if self.path.is_dir() else self.path.parent

    @abc.abstractmethod
    def read(self, name: str, start: int = 0, count: int | None = None) -> np.ndarray:
        """`count` entries of a tensor from its flat position `start` on (all that follow for None), as a flat array.

        Thread-safe. Of the stored dtype (ml_dtypes for bfloat16 and float8), in memory that is the caller's own.

        Raises:
            ValueError: a file that is truncated or cannot be read (its path).
        """
