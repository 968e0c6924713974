"""Models whose leaves are read one by one, when they are asked for, and a place for the leaves of a merge."""

import functools
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.checks import kind_of
from alignment.graph import PyTree, flatten
from npmerge.checkpoint.dtypes import CODES, DTYPES
from npmerge.checkpoint.stored import Entry, StoredModel

FILE = "model.safetensors"
PART = ".model.part"
"""The folder in which the file lies until all leaves are there, in that of the merge."""
Shapes = Mapping[str, jax.ShapeDtypeStruct]


class Leaves:
    """The leaves of a model on the host, by path.

    Args:
        name: what messages call the model.
        model: a tree whose leaves are arrays, or functions without arguments that return one; or a stored model whose tensors
            are named by paths, as those of `npmerge.checkpoint.save` are.
        shapes: that its leaves must have, by path.

    Raises:
        ValueError: a leaf that is missing, unexpected, or of another shape or dtype, as far as that is known without reading.
    """

    def __init__(self, name: str, model: PyTree | StoredModel, shapes: Shapes):
        self.name, self.shapes = name, shapes
        stored = isinstance(model, StoredModel)
        self._leaves = {path: functools.partial(_read, model, path) for path in model.entries} if stored else flatten(model)
        for path in [*shapes, *self._leaves]:
            known = path in shapes and path in self._leaves
            self._check(path, self._described(model.entries[path] if stored and known else self._leaves.get(path)))

    def __call__(self, paths: Iterable[str]) -> dict[str, np.ndarray]:
        """Leaves as NumPy arrays. Raises ValueError for NaN or infinity, or a shape or dtype that is not as expected."""
        found = {}
        for path in paths:
            leaf = self._leaves[path]
            found[path] = np.asarray(leaf() if callable(leaf) else leaf)
            self._check(path, self._described(found[path]))
            if bad := int((~np.isfinite(found[path])).sum()):
                raise ValueError(f"{self.name} has {bad} non-finite values of {found[path].size} in {path!r}")
        return found

    def _described(self, leaf: Any) -> str | None:
        """Shape and dtype of a leaf as messages write them, None for one whose are not known yet."""
        if leaf is None:
            return "no such leaf"
        if isinstance(leaf, Entry):
            return f"{DTYPES[leaf.dtype]}{list(leaf.shape)}"
        return None if callable(leaf) else f"{jnp.result_type(leaf)}{list(np.shape(leaf))}"

    def _check(self, path: str, got: str | None) -> None:
        expected = f"{self.shapes[path].dtype}{list(self.shapes[path].shape)}" if path in self.shapes else "no such leaf"
        if got not in (None, expected):
            raise ValueError(f"{self.name} does not fit at {path!r}: got {got}, expected {expected}")


def shapes_of(model: PyTree | StoredModel, like: PyTree | None) -> PyTree:
    """The variables of a network as `jax.ShapeDtypeStruct`: `like`, or those of a model that is a tree of arrays.

    Raises:
        ValueError: a model that is none, without `like`; a leaf that is not floating-point (its path).
    """
    given = model if like is None else like
    leaves = [None] if isinstance(given, StoredModel) else jax.tree.leaves(given)
    if any(leaf is None or callable(leaf) for leaf in leaves):
        raise ValueError(
            f"the shapes of the variables are not known from {kind_of(model)}: give like=, a tree of arrays or "
            "jax.ShapeDtypeStruct such as jax.eval_shape(init, key)"
        )
    for path, leaf in flatten(given).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"the variables have a leaf of dtype {jnp.result_type(leaf)} at {path!r}: only floating-point leaves can be "
                "merged, split the others off first"
            )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), given)


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


def _read(model: StoredModel, path: str) -> np.ndarray:
    entry = model.entries[path]
    return model.read(path).view(DTYPES[entry.dtype]).reshape(entry.shape)
