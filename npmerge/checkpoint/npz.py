"""NumPy's archives `.npz`, read and written without pickles.

NumPy has no bfloat16 and no float8: it writes such arrays as void ("|V2", "|V1") and reads them as that. Here the member
`npmerge.json` says what they are, `{"dtypes": {"w": "bfloat16"}}`; `numpy.load` gives it as bytes, and `array.view("bfloat16")`
of ml_dtypes brings the values back. Without that member "|V2" is bfloat16, as `jax.numpy.load` takes it.
"""

import ast
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from npmerge.checkpoint.dtypes import CODES, DTYPES
from npmerge.checkpoint.errors import CheckpointError, short
from npmerge.checkpoint.spans import NamedModel, Span, checked_entry, empty, gather
from npmerge.checkpoint.stored import Entry, StoredModel
from npmerge.checkpoint.zips import Inflater, Member, inflated, opened, read_members

SIDECAR, ENDING, MAGIC = "npmerge.json", ".npy", b"\x93NUMPY"
MOST_HEADER = 2**16
"""Bytes that the header of an array may take."""

PIECE = 2**22
"""Bytes that are in memory at a time while an archive is written."""

VOIDS = {"bfloat16": ("|V2", "<V2"), "float8_e4m3fn": ("|V1", "<V1"), "float8_e5m2": ("|V1", "<V1", "<f1")}
"""What stands in archives for the dtypes that NumPy lacks; the first is what is written."""

NAMELESS = {x for texts in VOIDS.values() for x in texts}

GUESSED = {"|V2": "bfloat16", "<V2": "bfloat16", "<f1": "float8_e5m2"}
"""What is taken for one of them where the archive does not say."""


@dataclass(frozen=True)
class Array:
    """An array of an archive.

    Attributes:
        member: that holds it.
        entry: as it is read.
        dtype: as it is stored, which may be of the other byte order.
        begin: byte of the member at which its values begin.
        fortran: whether the first axis is the one that runs fastest.
    """

    member: Member
    entry: Entry
    dtype: np.dtype
    begin: int
    fortran: bool


class NpzModel(NamedModel):
    """The arrays of an archive; what is not compressed is read piece by piece where it lies."""

    def __init__(self, path: Path, arrays: Mapping[str, Array], notes: list[str]):
        super().__init__(path, (x.entry for x in arrays.values()), notes)
        self._arrays = arrays
        self._inflaters = {name: Inflater(path, x.member) for name, x in arrays.items() if x.member.deflated}

    def _part(self, name: str, start: int, count: int) -> np.ndarray:
        array = self._arrays[name]
        if array.fortran:
            whole = self._flat(name, 0, array.entry.size).reshape(array.entry.shape, order="F")
            return whole.reshape(-1)[start : start + count].copy()
        return self._flat(name, start, count)

    def _flat(self, name: str, start: int, count: int) -> np.ndarray:
        """Values in the order in which they are stored."""
        array, size = self._arrays[name], self._arrays[name].dtype.itemsize
        buffer, begin = empty(count * size), array.begin + start * size
        if array.member.deflated:
            self._inflaters[name].read(begin, buffer)
        else:
            gather((Span(self.file, array.member.offset, array.member.nbytes),), begin, buffer)
        return buffer.view(array.dtype).astype(DTYPES[array.entry.dtype], copy=False)


def open_file(path: Path) -> NpzModel:
    """An archive of `numpy.savez` or `savez_compressed`; only headers are read. Members that are no arrays are left out, noted.

    Values of compressed members, and of arrays in Fortran's order, cannot be read in pieces as cheaply as others.

    Raises:
        CheckpointError: what `read_members` raises; an array of Python objects, which only a pickle could hold; a header that
            is damaged; a dtype that is not read; values that do not fill their shape.
    """
    members = dict(read_members(path))
    names, notes = _names(path, members.pop(SIDECAR, None)), []
    left = [name for name in members if not name.endswith(ENDING)]
    if left:
        notes.append(f"left out, being no arrays: {', '.join(left[:5])}{f' and {len(left) - 5} more' if len(left) > 5 else ''}")
    arrays = {}
    with opened(path) as file:
        for stored, member in members.items():
            if stored.endswith(ENDING):
                name = stored.removesuffix(ENDING)
                arrays[name] = _array(path, file, name, member, names.get(name))
    guessed = [x for x, array in arrays.items() if array.entry.dtype == "BF16" and x not in names]
    if guessed:
        notes.append(f"taken as bfloat16, being of two bytes that NumPy does not name: {', '.join(guessed[:5])}")
    return NpzModel(path, arrays, notes)


def write(file: BinaryIO, model: StoredModel, read: Callable[[Entry], Iterator[np.ndarray]]) -> None:
    """Write an archive that is not compressed, as `numpy.savez` would, and `npmerge.json` where a dtype needs it.

    Args:
        file: to write to.
        model: whose entries are written.
        read: the values of one of them, flat and in pieces.

    Raises:
        ValueError: a name that a zip archive does not hold.
    """
    for name in model.entries:
        if "\0" in name or len(name.encode()) > 65_000:
            raise ValueError(f"{short(name, 80)} is no name for a member of a zip archive: write safetensors")
    voids = {name: DTYPES[x.dtype].name for name, x in model.entries.items() if DTYPES[x.dtype].name in VOIDS}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for entry in model.entries.values():
            with archive.open(zipfile.ZipInfo(entry.name + ENDING), "w", force_zip64=True) as member:
                member.write(_header(entry))
                for piece in read(entry):
                    member.write(piece.view(np.uint8).data)
        if voids:
            archive.writestr(zipfile.ZipInfo(SIDECAR), json.dumps({"dtypes": voids}, ensure_ascii=False))


def _header(entry: Entry) -> bytes:
    dtype = DTYPES[entry.dtype]
    stored = VOIDS.get(dtype.name, (dtype.str,))[0]
    described = {"descr": stored, "fortran_order": False, "shape": entry.shape}
    text = f"{described}".encode()
    text += b" " * (-(len(text) + len(MAGIC) + 5) % 64) + b"\n"
    return MAGIC + b"\x01\x00" + len(text).to_bytes(2, "little") + text


def _names(path: Path, member: Member | None) -> dict[str, str]:
    """The dtypes that the archive says of its void arrays."""
    if member is None:
        return {}
    if member.nbytes > 2**26:
        raise CheckpointError(path, f"takes {member.nbytes} bytes, which is more than it could need", SIDECAR)
    try:
        with opened(path) as file:
            found = json.loads(_begin(path, file, member, member.nbytes))["dtypes"]
        if not all(x in VOIDS for x in found.values()):
            raise ValueError(f"expected dtypes among {', '.join(VOIDS)}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(path, f"is damaged: {str(error)[:200]}", SIDECAR) from None
    return found


def _begin(path: Path, file: BinaryIO, member: Member, most: int) -> bytes:
    """The first bytes that a member holds."""
    if not member.deflated:
        file.seek(member.offset)
        return file.read(min(member.nbytes, most))
    found = b""
    for piece in inflated(path, member):
        found += piece
        if len(found) >= most:
            break
    return found[:most]


def _array(path: Path, file: BinaryIO, name: str, member: Member, called: str | None) -> Array:
    """An array from the header of its member: see `numpy.lib.format`."""
    head = _begin(path, file, member, 2**12)
    width = 2 if head[6:7] == b"\x01" else 4
    length = int.from_bytes(head[8 : 8 + width], "little")
    if not head.startswith(MAGIC) or head[6] not in (1, 2, 3) or not 2 <= length <= MOST_HEADER or len(head) < 8 + width:
        raise CheckpointError(path, "is no array of NumPy, or its header is damaged", name)
    begin = 8 + width + length
    if begin > len(head):
        head = _begin(path, file, member, begin)
    try:
        described = ast.literal_eval(head[8 + width : begin].decode("utf-8" if head[6] == 3 else "latin1").strip())
        stored, fortran, shape = described["descr"], described["fortran_order"], described["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise CheckpointError(path, f"has a damaged header: {str(error)[:100]}", name) from None
    if type(fortran) is not bool or not isinstance(shape, tuple):
        raise CheckpointError(path, "has a damaged header: expected descr, fortran_order and shape", name)
    dtype, now = _dtypes(path, name, stored, called)
    entry = checked_entry(path, name, now, shape)
    needed = math.prod(shape) * dtype.itemsize
    if begin + needed != member.nbytes:
        raise CheckpointError(path, f"({now} {short(shape)}) needs {needed} bytes, has {member.nbytes - begin}", name)
    return Array(member, entry, dtype, begin, fortran and len(shape) > 1)


def _dtypes(path: Path, name: str, stored: Any, called: str | None) -> tuple[np.dtype, str]:
    """The dtype in the file, and the name of the one that is read."""
    if called is not None or (isinstance(stored, str) and stored in NAMELESS):
        found = called or GUESSED.get(stored)
        if found is None:
            raise CheckpointError(path, f"is of a byte that NumPy does not name: {SIDECAR} would say which float8 it is", name)
        if stored not in VOIDS[found]:
            raise CheckpointError(path, f"is {short(stored)}, but {found} to {SIDECAR}", name)
        return DTYPES[CODES[found]], found
    if isinstance(stored, str) and "O" in stored:
        raise CheckpointError(path, "holds Python objects, which only a pickle could read: it is never unpickled here", name)
    try:
        dtype = np.dtype(stored) if isinstance(stored, str) and re.fullmatch(r"[<>|=]?[a-zA-Z?]\d{0,2}", stored) else None
    except (TypeError, ValueError):
        dtype = None
    if isinstance(stored, str) and re.fullmatch(r"[<>|=]?[US]\d+", stored):
        raise CheckpointError(path, f"is text ({short(stored)}), which no network has: is this a checkpoint?", name)
    if dtype is None or dtype.newbyteorder("<") not in DTYPES.values():
        raise CheckpointError(path, f"has the dtype {short(stored, 60)}, which is not read", name)
    return dtype, dtype.name
