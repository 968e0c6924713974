"""The header of a safetensors file: read with suspicion, and laid out before a tensor is computed."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.errors import CheckpointError, short
from npmerge.checkpoint.stored import Entry

MOST = 100_000_000
"""Bytes that a header may take, as in the reference implementation: a length in a stranger's file is not to be believed."""

MOST_AXES = 32
"""Of a tensor: NumPy itself holds 64, XLA and tensorstore fewer."""


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
        CheckpointError: a file that cannot be read, is truncated or damaged, whose tensors overlap, leave gaps or have a dtype
            that NumPy lacks (the path, and the tensor).
    """
    try:
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if len(first) < 8 or not 2 <= length <= MOST:
                raise CheckpointError(
                    path, f"is not a safetensors file, or its header is damaged (length {length} of at most {MOST})"
                )
            text = file.read(length)
            size = file.seek(0, 2)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from None
    if len(text) < length:
        raise CheckpointError(path, f"is truncated: its header takes {length} bytes, {len(text)} are there")
    content = _json(path, text)
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise CheckpointError(path, "has a damaged header: __metadata__ must be an object of texts")
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
        raise CheckpointError(path, f"is not a safetensors file, or its header is damaged: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise CheckpointError(path, "has a damaged header: expected an object of tensors")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{short(name)} stands there twice")
        found[name] = value
    return found


def _placed(path: Path, name: str, described: Any) -> Placed:
    try:
        dtype, shape, (begin, end) = described["dtype"], described["shape"], described["data_offsets"]
        numbers = [*shape, begin, end]
        name.encode()
        if not isinstance(shape, list):
            raise TypeError
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(path, "needs dtype, shape and two data_offsets: the header is damaged", name) from None
    if not all(type(x) is int and 0 <= x < 2**60 for x in numbers):
        raise CheckpointError(path, f"has the shape {short(shape)} and the offsets {short([begin, end])}", name)
    if len(shape) > MOST_AXES or math.prod(max(x, 1) for x in shape) >= 2**60:
        raise CheckpointError(path, f"has the shape {short(shape)}, which no memory holds", name)
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(path, f"has the dtype {short(dtype)}, expected one of {', '.join(DTYPES)}", name)
    entry = Entry(name, dtype, tuple(shape))
    if end - begin != entry.nbytes:
        raise CheckpointError(path, f"({dtype} {short(shape)}) needs {entry.nbytes} bytes, has {end - begin}", name)
    return Placed(entry, begin)


def _check_places(path: Path, placed: list[Placed], available: int) -> None:
    """Tensors must fill the file without overlaps or gaps: what lies between them could be anything."""
    position, before = 0, "the header"
    for x in placed:
        if x.offset != position:
            what = "overlaps with" if x.offset < position else f"leaves {x.offset - position} bytes free after"
            raise CheckpointError(path, f"{what} {before}: the header is damaged", x.entry.name)
        position, before = x.offset + x.entry.nbytes, short(x.entry.name)
    if position != available:
        what = "is truncated" if position > available else "is damaged"
        raise CheckpointError(path, f"{what}: its tensors take {position} bytes, {available} are there")
