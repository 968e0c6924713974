"""The header of a safetensors file: read with suspicion, and laid out before a tensor is computed."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from npmerge.checkpoint.stored import Entry

DTYPES: Mapping[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "C64": np.dtype(np.complex64),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
}
"""NumPy's dtype for each of safetensors' that NumPy can hold."""

MOST = 100_000_000
"""Bytes that a header may take, as in the reference implementation: a length in a stranger's file is not to be believed."""


@dataclass(frozen=True)
class Placed:
    """A tensor and the byte of its file at which it begins."""

    entry: Entry
    offset: int


@dataclass(frozen=True)
class Header:
    """What one file holds.

    Attributes:
        tensors: by name, in the order in which they lie.
        metadata: the texts that the file carries.
        text: the bytes of the header themselves.
    """

    tensors: Mapping[str, Placed]
    metadata: Mapping[str, str]
    text: bytes


def read_header(path: Path) -> Header:
    """The header of a safetensors file; no tensor is read.

    Raises:
        ValueError: a file that cannot be read, is truncated or damaged, whose tensors overlap, leave gaps or have a dtype
            that NumPy lacks (the path, and the tensor).
    """
    try:
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if len(first) < 8 or not 2 <= length <= MOST:
                raise ValueError(
                    f"{path} is not a safetensors file, or its header is damaged (length {length} of at most {MOST})"
                )
            text = file.read(length)
            size = file.seek(0, 2)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    if len(text) < length:
        raise ValueError(f"{path} is truncated: its header takes {length} bytes, {len(text)} are there")
    content = _json(path, text)
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise ValueError(f"{path} has a damaged header: __metadata__ must be an object of texts")
    placed = sorted((_placed(path, name, x) for name, x in content.items()), key=lambda x: (x.offset, x.entry.nbytes))
    _check_places(path, placed, size - 8 - length)
    return Header({x.entry.name: Placed(x.entry, x.offset + 8 + length) for x in placed}, metadata, text)


def layout(entries: Iterable[Entry], metadata: Mapping[str, str]) -> Header:
    """The header of a file with these tensors: widest dtypes first, so that each is aligned, otherwise in the given order."""
    ordered = sorted(entries, key=lambda x: -DTYPES[x.dtype].itemsize)
    content: dict[str, Any] = {"__metadata__": dict(metadata)}
    offsets, position = [], 0
    for entry in ordered:
        offsets.append(position)
        position += entry.nbytes
        content[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [offsets[-1], position]}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    tensors = {entry.name: Placed(entry, start + offset) for entry, offset in zip(ordered, offsets, strict=True)}
    return Header(tensors, metadata, text)


def _json(path: Path, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a safetensors file, or its header is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} has a damaged header: expected an object of tensors")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands there twice")
        found[name] = value
    return found


def _placed(path: Path, name: str, described: Any) -> Placed:
    try:
        dtype, shape, (begin, end) = described["dtype"], described["shape"], described["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{path} has a damaged header: {name!r} needs dtype, shape and two data_offsets") from None
    if not all(type(x) is int and 0 <= x < 2**60 for x in numbers):
        raise ValueError(f"{path} has a damaged header: {name!r} has the shape {shape} and the offsets {[begin, end]}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{path}: {name!r} has the dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != nbytes:
        raise ValueError(f"{path} has a damaged header: {name!r} ({dtype} {shape}) needs {nbytes} bytes, has {end - begin}")
    return Placed(Entry(name, dtype, tuple(shape), nbytes), begin)


def _check_places(path: Path, placed: list[Placed], available: int) -> None:
    """Tensors must fill the file without overlaps or gaps: what lies between them could be anything."""
    position, before = 0, "the header"
    for x in placed:
        if x.offset != position:
            what = "overlaps with" if x.offset < position else f"leaves {x.offset - position} bytes free after"
            raise ValueError(f"{path} has a damaged header: {x.entry.name!r} {what} {before}")
        position, before = x.offset + x.entry.nbytes, repr(x.entry.name)
    if position != available:
        what = "is truncated" if position > available else "is damaged"
        raise ValueError(f"{path} {what}: its tensors take {position} bytes, {available} are there")
