"""Files of PyTorch before 1.6: pickles one behind the other, then the storages, read without PyTorch."""

import sys
from pathlib import Path
from typing import Any, BinaryIO

from npmerge.checkpoint.containers import find_tensors
from npmerge.checkpoint.dtypes import CODES, DTYPES
from npmerge.checkpoint.errors import CheckpointError, short
from npmerge.checkpoint.pickles import Pairs, read_pickle
from npmerge.checkpoint.rebuilt import Storage, call, persistent
from npmerge.checkpoint.spans import Span
from npmerge.checkpoint.strided import Region, StridedModel
from npmerge.checkpoint.zips import opened

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
HEAD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of a file: the pickle of `MAGIC`, as protocol 2 writes it."""


def open_file(path: Path) -> StridedModel:
    """A file that `torch.save` wrote before 1.6, or later with `_use_new_zipfile_serialization=False`.

    Raises:
        CheckpointError: a tar archive of PyTorch 0.1, another pickle, a damaged or truncated file, a pickle that names anything
            but tensors and plain data, a tensor that lies outside its storage (the path, and the tensor).
    """
    path = Path(path)
    with opened(path) as file:
        _check_kind(path, file)
        order = _order(path, file)
        storages = _Storages(path)
        content = read_pickle(path, file, call, storages.persistent)
        keys = read_pickle(path, file, _nothing)
        if not isinstance(keys, list) or not all(isinstance(x, str) for x in keys):
            raise CheckpointError(path, "has a damaged list of storages")
        regions = storages.placed(file, keys, order)
    tensors, notes = find_tensors(path, content)
    return StridedModel(path, tensors, regions, notes, swapped=order != sys.byteorder)


class _Storages:
    """The storages that the pickle names."""

    def __init__(self, path: Path):
        self._path = path
        self._named: dict[str, Storage] = {}

    def persistent(self, value: Any) -> Storage:
        """As `rebuilt.persistent`; a key stands for one dtype and one length."""
        storage = persistent(value)
        before = self._named.setdefault(storage.key, storage)
        if (before.dtype, before.whole) != (storage.dtype, storage.whole):
            raise CheckpointError(self._path, "is a storage of two dtypes or lengths", storage.key)
        return storage

    def placed(self, file: BinaryIO, keys: list[str], order: Any) -> dict[str, Region]:
        """Where they lie, from the position of the file on: a length of 8 bytes before each."""
        position, size = file.tell(), file.seek(0, 2)
        found: dict[str, Region] = {}
        for key in keys:
            if key in found or key not in self._named:
                raise CheckpointError(self._path, "is a storage that stands there twice or that no tensor names", key)
            storage = self._named[key]
            file.seek(position)
            length = int.from_bytes(file.read(8), order)
            nbytes = storage.whole * DTYPES[CODES[storage.dtype]].itemsize
            position += 8
            if length != storage.whole:
                raise CheckpointError(self._path, f"is a storage of {length} entries, expected {storage.whole}", key)
            if position + nbytes > size:
                raise CheckpointError(self._path, f"is truncated: a storage ends at {position + nbytes} of {size} bytes", key)
            found[key] = Region(Span(self._path, position, nbytes))
            position += nbytes
        return found


def _check_kind(path: Path, file: BinaryIO) -> None:
    head = file.read(512)
    if head[257:262] == b"ustar":
        why = "is a tar archive of PyTorch 0.1, which is not read: load it with PyTorch and save it again"
        raise CheckpointError(path, why)
    if not head:
        raise CheckpointError(path, "is empty")
    if not head.startswith(b"\x80"):
        raise CheckpointError(path, f"is no pickle of PyTorch: it begins with {short(head[:8])}")
    file.seek(0)


def _order(path: Path, file: BinaryIO) -> Any:
    """The order of bytes, from the three pickles before that of the tensors."""
    magic = read_pickle(path, file, _nothing)
    if type(magic) is not int or magic != MAGIC:
        raise CheckpointError(path, "is a pickle, but none of PyTorch: it does not begin with its magic number")
    version = read_pickle(path, file, _nothing)
    if type(version) is not int or version != VERSION:
        raise CheckpointError(path, f"is of another version of the format, expected {VERSION}")
    system = read_pickle(path, file, _nothing)
    if not isinstance(system, Pairs):
        raise CheckpointError(path, "has no description of the machine that wrote it")
    little = next((value for key, value in system.items if isinstance(key, str) and key == "little_endian"), None)
    if type(little) is not bool:
        raise CheckpointError(path, "does not say the order of its bytes")
    return "little" if little else "big"


def _nothing(name: str, arguments: tuple[Any, ...]) -> Any:
    raise KeyError(name)
