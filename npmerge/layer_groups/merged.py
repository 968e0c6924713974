"""A place for the leaves of a merge as they come: the host, or a file that has its name when it is whole."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alignment.graph import PyTree, flatten
from npmerge.checkpoint.dtypes import CODES
from npmerge.checkpoint.stored import Entry
from npmerge.layer_groups.leaves import Shapes

FILE = "model.safetensors"
PART = ".model.part"
"""The folder in which the file lies until all leaves are there, in that of the merge."""


class Merged:
    """The leaves of a merge as they come, on the host or in a folder.

    Args:
        shapes: that they will have.
        folder: for one safetensors file, or None. It is made if it is not there. The file gets its name when all leaves are
            there; what a process that was killed has left is overwritten.

    Raises:
        ValueError: a folder that has a model already, or cannot be written.
    """

    def __init__(self, shapes: Shapes, folder: Path | str | None):
        self.shapes, self.folder = shapes, None if folder is None else Path(folder)
        self._held: dict[str, np.ndarray] = {}
        self._writer = None if self.folder is None else _writer(self.folder, shapes)

    def put(self, leaves: Mapping[str, np.ndarray]) -> None:
        """Keep leaves."""
        for path, x in leaves.items():
            if self._writer is None:
                self._held[path] = np.asarray(x)
            else:
                self._writer.write(path, 0, np.asarray(x, order="C"))

    def __call__(self, paths: Iterable[str]) -> dict[str, np.ndarray]:
        """Leaves that were kept."""
        if self._writer is None:
            return {path: self._held[path] for path in paths}
        return {path: self._written(path) for path in paths}

    def finished(self, like: PyTree) -> PyTree:
        """All leaves as a tree; those in a file are read from there when they are needed (`numpy.memmap`)."""
        if self._writer is not None:
            self._writer.finish()
            _put_in_place(self.folder)  # type: ignore[arg-type]
            self._held = _mapped(self.folder / FILE, self.shapes)  # type: ignore[operator]
        return jax.tree.unflatten(jax.tree.structure(like), [self._held[path] for path in flatten(like)])

    def close(self) -> None:
        """Close the file; one that is not whole goes."""
        if self._writer is not None:
            self._writer.close()
            shutil.rmtree(self.folder / PART, ignore_errors=True)  # type: ignore[operator]

    def _written(self, path: str) -> np.ndarray:
        shape, dtype = self.shapes[path].shape, np.dtype(self.shapes[path].dtype)
        found = self._writer.read(path, 0, int(np.prod(shape)) * dtype.itemsize)  # type: ignore[union-attr]
        return np.frombuffer(found, dtype).reshape(shape)


def _writer(folder: Path, shapes: Shapes) -> Any:
    from npmerge.checkpoint.writer import ModelWriter

    path = folder / FILE
    try:
        there = path.exists()
        if not there:
            (folder / PART).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror or error}") from None
    if there:
        raise ValueError(
            f"{path} exists, a whole model: read it by npmerge.checkpoint.formats.open_checkpoint, or move it away or name "
            "another folder to have it written anew; with the same checkpoints no step is then done again"
        )
    entries = [Entry(p, CODES[np.dtype(x.dtype).name], x.shape) for p, x in shapes.items()]
    return ModelWriter(folder / PART, entries, {})


def _put_in_place(folder: Path) -> None:
    from npmerge.checkpoint.partial import sync_folder

    sync_folder(folder / PART)
    try:
        (folder / PART / FILE).rename(folder / FILE)
    except OSError as error:
        raise ValueError(f"cannot write {folder / FILE}: {error.strerror or error}") from None


def _mapped(path: Path, shapes: Shapes) -> dict[str, np.ndarray]:
    from npmerge.checkpoint.headers import read_header

    header = read_header(path)
    return {
        name: np.memmap(path, shapes[name].dtype, "r", placed.offset, shapes[name].shape)
        for name, placed in header.tensors.items()
    }
