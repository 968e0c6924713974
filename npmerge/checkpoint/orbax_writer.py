"""Orbax checkpoints, written by Orbax itself: sharded arrays by several hosts, or a model on disk a part at a time."""

import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npmerge.checkpoint.ahead import ahead
from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.stored import StoredModel
from npmerge.checkpoint.trees import nested

PIECE = 64 * 2**20
"""Bytes of a stored model that Orbax is given at a time; it takes about as many again three times over."""

CHUNK = 2**22
"""Bytes that arrays are divided into: what is read in pieces reads whole chunks."""

MOST_PARTS = 500
"""Parts of a checkpoint: Orbax reads the metadata of all parts before for each, so that larger models have larger ones."""


def write(path: Path | str, tensors: Mapping[str, Any] | StoredModel, *, overwrite: bool = False) -> None:
    """Write a checkpoint by Orbax; it appears whole or not at all.

    Arrays go through Orbax's `StandardCheckpointer`: sharded `jax.Array`s are written shard by shard, and where a computation
    runs on several hosts all of them call this with the same path on a file system that they share. A stored model is saved in
    parts, of `PIECE` bytes or more, by Orbax's partial saving, by one host, into the item "state" of the folder.

    Names are paths: "params/w" becomes `{"params": {"w": ...}}`. Orbax refuses arrays with no entries: their shapes go into
    the checkpoint's metadata, from which `open_file` gives them back.

    Args:
        path: of the folder; the one around it must exist.
        tensors: by name.
        overwrite: whether a checkpoint that is there may be replaced.

    Raises:
        ValueError: a folder that exists, names that are prefixes of others or that Orbax would store as one, a disk that
            cannot be written.
    """
    path = Path(path).absolute()
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: choose another name, or pass overwrite=True")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: its folder does not exist")
    shapes = _shapes(tensors)
    _check_names(path, shapes)
    empty = {name: [dtype, list(shape)] for name, (dtype, shape) in shapes.items() if math.prod(shape) == 0}
    if len(empty) == len(shapes):
        raise ValueError(f"cannot write {path}: Orbax holds no checkpoint without entries")
    metadata = {"npmerge": {"empty": empty}}
    try:
        if isinstance(tensors, StoredModel):
            _write_in_parts(path, tensors, metadata)
        else:
            _write_at_once(path, {name: x for name, x in tensors.items() if name not in empty}, metadata)
    except CheckpointError:  # of the model that is read
        raise
    except (OSError, ValueError, RuntimeError) as error:  # tensorstore says what a disk refuses by either of the latter
        raise ValueError(f"cannot write {path}: {getattr(error, 'strerror', None) or str(error)[:1000]}") from None


def _shapes(tensors: Mapping[str, Any] | StoredModel) -> dict[str, tuple[str, tuple[int, ...]]]:
    if isinstance(tensors, StoredModel):
        return {name: (DTYPES[x.dtype].name, x.shape) for name, x in tensors.entries.items()}
    return {name: (np.dtype(x.dtype).name, tuple(x.shape)) for name, x in tensors.items()}


def _write_at_once(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, nested(arrays, "/"), custom_metadata=metadata, force=True)


def _write_in_parts(path: Path, model: StoredModel, metadata: dict[str, Any]) -> None:
    from orbax.checkpoint.experimental import v1 as ocp

    context = ocp.Context()
    context.array.saving.use_compression = False  # weights hardly shrink, and zstandard is slower than the disk
    context.array.saving.storage_options.chunk_byte_size = CHUNK
    beside = path.with_name(f"{path.name.lstrip('.')}-{uuid.uuid4().hex}")  # Orbax overlooks names that begin with a dot
    try:
        with context:
            for part in ahead(_parts(model)):
                ocp.partial.save(beside, nested(part, "/"), custom_metadata=metadata)
            ocp.partial.finalize(beside)
        if path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.replace(beside, path)  # noqa: PTH105
    finally:
        for left in path.parent.glob(f"{beside.name}*"):
            shutil.rmtree(left, ignore_errors=True)


def _parts(model: StoredModel) -> Iterator[dict[str, np.ndarray]]:
    part: dict[str, np.ndarray] = {}
    filled, most = 0, max(PIECE, sum(x.nbytes for x in model.entries.values()) // MOST_PARTS)
    for entry in model.entries.values():
        if entry.size == 0:
            continue
        if part and filled + entry.nbytes > most:
            yield part
            part, filled = {}, 0
        part[entry.name] = model.read(entry.name).reshape(entry.shape)
        filled += entry.nbytes
    yield part


def _check_names(path: Path, names: Iterable[str]) -> None:
    """Orbax joins keys by dots to store an array, and a key cannot be an array and hold others."""
    found: dict[str, str] = {}
    folders = {"/".join(parts[:k]) for name in names for parts in [name.split("/")] for k in range(1, len(parts))}
    for name in names:
        stored = name.replace("/", ".")
        if stored in found:
            raise ValueError(f"cannot write {path}: Orbax stores {found[stored]!r} and {name!r} under one name")
        if {"", ".", ".."} & set(name.split("/")) or "\0" in name:
            raise ValueError(f"cannot write {path}: {name!r} is no name for Orbax")
        if name in folders:
            raise ValueError(f"cannot write {path}: {name!r} is also the beginning of a path")
        found[stored] = name
