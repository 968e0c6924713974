"""Models as folders of safetensors files, or one such file: headers are checked whole, tensors are read when asked for."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from npmerge.checkpoint.errors import CheckpointError, short
from npmerge.checkpoint.headers import DTYPES, Header, read_header
from npmerge.checkpoint.indices import check_agreement, read_object, tensors_by_file
from npmerge.checkpoint.stored import Entry, StoredModel

INDEX = ".safetensors.index.json"
OTHERS = ("pytorch_model*.bin", "tf_model*.h5", "flax_model*.msgpack", "*.gguf")
"""Weights in formats that are not read here."""

PERHAPS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.npz")
"""Names that may be of weights: told where there is nothing else."""

ALIGNED = 64
"""Bytes at a multiple of which arrays begin: XLA takes such memory without a copy."""


class ShardedModel(StoredModel):
    """A model in one or several safetensors files.

    Attributes:
        files: that hold the tensors, in the order of their names, with their headers.
    """

    def __init__(self, path: Path, files: Mapping[Path, Header], config: Mapping[str, Any], name: str = ""):
        self.path, self.called = path, name
        self.files = MappingProxyType(dict(files))
        self.config = config
        self._places = {name: (file, placed) for file, header in files.items() for name, placed in header.tensors.items()}
        self.entries: Mapping[str, Entry] = MappingProxyType({name: x.entry for name, (_, x) in self._places.items()})

    def read(self, name: str, start: int = 0, count: int | None = None) -> np.ndarray:
        """See `StoredModel.read`. Raises CheckpointError also for a name or a range that the model has not."""
        if name not in self._places:
            from alignment.checks import unknown  # imports JAX

            raise CheckpointError(self.path, unknown("tensor", name, self._places))
        file, placed = self._places[name]
        dtype, count = DTYPES[placed.entry.dtype], placed.entry.size - start if count is None else count
        if start < 0 or count < 0 or start + count > placed.entry.size:
            raise CheckpointError(self.path, f"has {placed.entry.size} entries, asked for {count} from {start} on", name)
        buffer = empty(count * dtype.itemsize)
        _fill(file, buffer, placed.offset + start * dtype.itemsize)
        return buffer.view(dtype)


def open_model(path: Path | str, *, name: str = "") -> ShardedModel:
    """A model whose headers are read and checked: a folder, one safetensors file, or the index of several.

    Args:
        path: of the folder or file.
        name: what people call it; the path for an empty one.

    Raises:
        CheckpointError: no such path; a folder with no weights, weights in two formats or one that is not read here; an index
            that is damaged, names files outside the folder or missing ones, or does not agree with them; what `read_header`
            raises.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(path, "no such file or folder")
    chosen = choose(path) if path.is_dir() else path
    if not chosen.name.endswith((INDEX, ".safetensors")):
        raise CheckpointError(path, f"expected a folder, a file .safetensors or an index {INDEX}")
    return open_chosen(path, chosen, name, index=chosen.name.endswith(INDEX))


def open_chosen(path: Path, chosen: Path, name: str, *, index: bool) -> ShardedModel:
    """The model of one file or index, whatever that is called, which `path` stands for; see `open_model`."""
    files = _indexed(chosen) if index else {chosen: read_header(chosen)}
    folder = chosen.parent
    if not any(header.tensors for header in files.values()):
        raise CheckpointError(path, "has no tensors")
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    return ShardedModel(path, files, config, name)


def check_inside(folder: Path, path: Path) -> None:
    """Raises CheckpointError for what is found in a folder and is no file, or a link that leads out of it.

    In the cache of Hugging Face, files are links from `snapshots/REVISION` to `blobs`: those are followed.
    """
    real, here = path.resolve(), folder.resolve()
    cached = here.parent.name == "snapshots" and real.parent == here.parent.parent / "blobs"
    if not real.is_relative_to(here) and not cached:
        raise CheckpointError(path, f"is a link that leads out of its folder, to {real}: name the file itself")
    if not real.is_file():
        raise CheckpointError(path, "is no file")


def empty(nbytes: int) -> np.ndarray:
    """Bytes of no particular value, aligned as XLA likes them."""
    raw = np.empty(nbytes + ALIGNED, np.uint8)
    begin = -raw.ctypes.data % ALIGNED
    return raw[begin : begin + nbytes]


def choose(folder: Path) -> Path:
    """The file or the index that stands for a folder. Raises CheckpointError if none or several could."""
    indices, files = sorted(folder.glob(f"*{INDEX}")), sorted(folder.glob("*.safetensors"))
    others = sorted(x for pattern in OTHERS for x in folder.glob(pattern))
    single = [x for x in files if x.name.removesuffix(".safetensors") + INDEX in {i.name for i in indices}]
    found = indices + single if indices else files
    if not found:
        others = others or sorted(x for pattern in PERHAPS for x in folder.glob(pattern))
        holds = f"only {_listed(others)}, which is not read here: convert it to safetensors" if others else "no weights"
        raise CheckpointError(folder, f"holds {holds}")
    if len(found) > 1 or others:
        broken = not indices and any("-of-" in x.name for x in files)
        why = (
            f"but no index *{INDEX}" if broken else "and it is not clear which is meant: name one of them instead of the folder"
        )
        raise CheckpointError(folder, f"holds {_listed([*found, *others])}, {why}")
    if not indices and "-of-" in found[0].name:
        raise CheckpointError(folder, f"holds {found[0].name}, one of several, but no index *{INDEX}")
    check_inside(folder, found[0])
    return found[0]


def _listed(paths: list[Path]) -> str:
    names = [x.name for x in paths]
    return " and ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more files"


def _indexed(index: Path) -> dict[Path, Header]:
    """The files that an index names, which must agree with it."""
    names = tensors_by_file(index)
    for file in names:
        if Path(file).name != file or not file.endswith(".safetensors") or len(file) > 200:
            raise CheckpointError(index, f"is a broken index: {short(file)} is no safetensors file of its folder")
        if not (index.parent / file).is_file():
            raise CheckpointError(index, f"names {file}, which is missing")
        check_inside(index.parent, index.parent / file)
    files = {index.parent / file: read_header(index.parent / file) for file in sorted(names)}
    for path, header in files.items():
        check_agreement(index, path, names[path.name], header.tensors)
    return files


def _fill(path: Path, buffer: np.ndarray, offset: int) -> None:
    """Read the bytes from an offset on; a file that has become shorter since its header was read is an error."""
    done = 0
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while done < len(buffer):
                got = os.preadv(file, [buffer[done:].data], offset + done)
                if not got:
                    left = len(buffer) - done
                    raise CheckpointError(path, f"is truncated: it ends at byte {offset + done}, {left} more were expected")
                done += got
        finally:
            os.close(file)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from None
