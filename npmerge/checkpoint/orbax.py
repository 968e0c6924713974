"""Orbax checkpoints, read through tensorstore a piece at a time. `npmerge.checkpoint.orbax_writer` writes them."""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.indices import read_object
from npmerge.checkpoint.slabs import slabs
from npmerge.checkpoint.spans import NamedModel, checked_entry, guarded, optional
from npmerge.checkpoint.stored import Entry

METADATA, AROUND = "_METADATA", "_CHECKPOINT_METADATA"
ARRAYS = ("jax.Array", "np.ndarray", "scalar")
"""What Orbax calls the values that are read here; texts and None are left out."""

GROWTH = 40_000
"""Times its bytes on disk that a checkpoint may hold: zstandard packs 128 KiB of one byte into four bytes at best."""

CACHE, MOST_CACHE = 2**26, 2**31
"""Bytes of chunks that are kept, and where these are large, the most."""

MOST_METADATA = 256 * 2**20
MOST_FILES = 1_000_000


class OrbaxModel(NamedModel):
    """The arrays of a checkpoint, opened by tensorstore."""

    def __init__(self, path: Path, arrays: Mapping[str, Any], entries: Iterable[Entry], notes: list[str]):
        super().__init__(path, entries, notes)
        self._arrays = arrays

    def _part(self, name: str, start: int, count: int) -> np.ndarray:
        array, entry = self._arrays[name], self.entries[name]
        return guarded(
            self.path,
            "an Orbax checkpoint",
            lambda: slabs(lambda index: array[index].read().result(), entry, start, count),
        )


def open_file(path: Path) -> OrbaxModel:
    """A checkpoint's folder, or one around a single item such as "default" or "state", which a note says.

    Tensors are named by their paths, "params/dense/kernel". Reading needs neither JAX nor Orbax.

    Raises:
        CheckpointError: no such folder, none or several items in it, links that lead out of it, metadata that is damaged or
            names arrays outside or missing ones, or arrays that the bytes on disk cannot hold.
    """
    item, notes = _item(path)
    size = _checked_size(path)
    content = read_object(item / METADATA, MOST_METADATA)
    tree = content.get("tree_metadata")
    if not isinstance(tree, dict):
        raise CheckpointError(item / METADATA, "is damaged: expected tree_metadata, an object")
    names, left = _names(item, tree)
    arrays = _opened(item, content, names, CACHE)
    if (needed := 2 * max(map(_chunk_bytes, arrays.values()), default=0)) > CACHE:  # else each piece would unpack it again
        arrays = _opened(item, content, names, min(needed, MOST_CACHE))
    entries = [checked_entry(path, name, x.dtype.numpy_dtype.name, x.shape) for name, x in arrays.items()]
    if sum(x.nbytes for x in entries) > GROWTH * size:
        raise CheckpointError(path, f"says that it holds more than {GROWTH:,} times its {size} bytes")
    entries += _empty_ones(path)
    if left:
        notes.append(f"left out, being no arrays: {', '.join(left[:5])}{f' and {len(left) - 5} more' if len(left) > 5 else ''}")
    return OrbaxModel(path, arrays, entries, notes)


def _item(path: Path) -> tuple[Path, list[str]]:
    """The folder with the metadata: the one given, or the only one within."""
    if not path.is_dir():
        raise CheckpointError(path, "is no folder, expected an Orbax checkpoint" if path.exists() else "no such folder")
    if (path / METADATA).is_file():
        return path, []
    found = sorted(x.parent for pattern in (f"*/{METADATA}", f"*/*/{METADATA}") for x in path.glob(pattern))
    if not found:
        raise CheckpointError(path, f"is no Orbax checkpoint: there is no {METADATA}")
    names = [str(x.relative_to(path)) for x in found]
    if len(found) > 1:
        raise CheckpointError(path, f"holds several checkpoints, name one of them: {', '.join(names[:10])}")
    return found[0], [f"found in {names[0]!r}"]


def _checked_size(path: Path) -> int:
    """Bytes of all files. Raises CheckpointError for a link that leads out of the folder, or files without end."""
    inside, size, count = path.resolve(), 0, 0
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            file, count = Path(folder, name), count + 1
            if count > MOST_FILES:
                raise CheckpointError(path, f"holds more than {MOST_FILES:,} files")
            if file.is_symlink() and not file.resolve().is_relative_to(inside):
                raise CheckpointError(file, "is a link that leads out of the checkpoint")
            size += file.stat().st_size if file.is_file() else 0
    return size


def _names(item: Path, tree: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """What each array is stored under, by its name, and the names of what is no array."""
    names: dict[str, str] = {}
    left: list[str] = []
    for described, value in tree.items():
        try:
            keys = [str(x["key"]) for x in value["key_metadata"]]
            kind, skipped = value["value_metadata"]["value_type"], value["value_metadata"]["skip_deserialize"]
        except (TypeError, KeyError):
            raise CheckpointError(item / METADATA, "needs key_metadata and value_metadata", described[:200]) from None
        name, stored = "/".join(keys), ".".join(keys)
        if skipped or kind not in ARRAYS:
            left.append(name)
            continue
        if not stored or {"..", "."} & set(stored.split("/")) or stored.startswith("/") or "\0" in stored:
            raise CheckpointError(item / METADATA, "leads out of the checkpoint", name)
        if name in names:
            raise CheckpointError(item / METADATA, "stands there twice", name)
        names[name] = stored
    return names, left


def _opened(item: Path, content: Mapping[str, Any], names: Mapping[str, str], cache: int) -> dict[str, Any]:
    """The arrays by name: their own metadata has been read, none of their entries."""
    ts = optional("tensorstore", "orbax", item)
    driver = "zarr3" if content.get("use_zarr3") is True else "zarr"
    missing = content.get("store_array_data_equal_to_fill_value") is not True  # then what equals it is not there
    base = f"{item.absolute()}/"
    context = ts.Context({"cache_pool": {"total_bytes_limit": cache}})

    def spec(stored: str) -> dict[str, Any]:
        file = {"driver": "file", "path": base}
        store = {"driver": "ocdbt", "base": file, "path": f"{stored}/"}
        if content.get("use_ocdbt", True) is not True:
            store = {"driver": "file", "path": f"{base}{stored}/"}
        return {"driver": driver, "kvstore": store, "fill_missing_data_reads": missing, "recheck_cached_data": "open"}

    def opened() -> dict[str, Any]:
        waiting = {name: ts.open(spec(x), read=True, open=True, context=context) for name, x in names.items()}
        return {name: x.result() for name, x in waiting.items()}

    return guarded(item, "an Orbax checkpoint", opened)


def _chunk_bytes(array: Any) -> int:
    """Bytes of what is read at once of an array, or of all of it where that is less."""
    shape = map(min, array.chunk_layout.read_chunk.shape or (), array.shape)
    return math.prod(shape) * array.dtype.numpy_dtype.itemsize


def _empty_ones(path: Path) -> list[Entry]:
    """The arrays with no entries, which `write` leaves in the metadata."""
    if not (path / AROUND).is_file():
        return []
    own = read_object(path / AROUND, MOST_METADATA).get("custom_metadata")
    own = own.get("npmerge") if isinstance(own, dict) else None
    described: Any = own.get("empty") if isinstance(own, dict) else {}
    try:
        return [checked_entry(path, name, dtype, shape, 0) for name, (dtype, shape) in dict(described).items()]
    except (TypeError, ValueError) as error:
        raise CheckpointError(path / AROUND, f"is damaged: {error}") from None
