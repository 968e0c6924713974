"""GGUF files: the header is read here, since nothing in it is to be believed; the package `gguf` dequantises."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.headers import MOST_AXES
from npmerge.checkpoint.spans import NamedModel, Span, checked_entry, empty, gather, optional
from npmerge.checkpoint.stored import Entry

MOST_HEADER = 256 * 2**20
"""Bytes that keys and tensors' descriptions may take; vocabularies take a few MB."""

MOST_NUMBERS = 4_000_000
"""Lengths and other numbers of a header, each a step of Python: a vocabulary of 256,000 words has about as many."""

STORED = {
    0: "float32",
    1: "float16",
    24: "int8",
    25: "int16",
    26: "int32",
    27: "int64",
    28: "float64",
    30: "bfloat16",
}
"""Types of GGUF that NumPy holds as they are."""

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _TEXT, _LIST = 4, 8, 9


@dataclass(frozen=True)
class Tensor:
    """A tensor of a GGUF file.

    Attributes:
        entry: as it is read.
        span: its bytes.
        quantised: the type of GGUF, where the package has to dequantise it; None for one that NumPy holds.
        block: entries and bytes of a quantised block.
    """

    entry: Entry
    span: Span
    quantised: int | None
    block: tuple[int, int]


class GGUFModel(NamedModel):
    """The tensors of a GGUF file, quantised ones as the float32 that they stand for."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], notes: list[str]):
        super().__init__(path, (x.entry for x in tensors.values()), notes)
        self._tensors = tensors

    def _part(self, name: str, start: int, count: int) -> np.ndarray:
        tensor = self._tensors[name]
        entries, nbytes = tensor.block
        first, last = start // entries, -(-(start + count) // entries)
        buffer = empty((last - first) * nbytes)
        gather((tensor.span,), first * nbytes, buffer)
        if tensor.quantised is None:
            return buffer.view(DTYPES[tensor.entry.dtype])
        whole = _dequantised(self.path, buffer.reshape(-1, nbytes), tensor.quantised)
        return np.array(whole[start - first * entries :][:count], np.float32)


def open_file(path: Path) -> GGUFModel:
    """A GGUF file of version 2 or 3, little-endian, with shapes as NumPy orders them: GGUF counts axes from the last on.

    A note names the quantised types; their tensors are read as float32, by the package `gguf`.

    Raises:
        CheckpointError: no such file, a truncated one, lengths or offsets that lie, tensors that overlap, types unknown to
            the package, or a missing package where there are quantised tensors.
    """
    try:
        with path.open("rb") as file:
            header = _Header(path, file)
            described = list(header.tensors())
            tensors = _placed(path, described, header)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from None
    kinds = sorted({x.quantised for x in tensors.values() if x.quantised is not None})
    notes = [f"architecture {header.architecture}"] if header.architecture else []
    if kinds:
        names = [_probed(path, x, next(tensor for tensor in tensors.values() if tensor.quantised == x)) for x in kinds]
        notes.append(f"dequantised to float32: tensors of {', '.join(names)}")
    return GGUFModel(path, tensors, notes)


def _probed(path: Path, kind: int, tensor: Tensor) -> str:
    """The name of a quantised type, which the package must be able to dequantise: a block of zeros is tried."""
    name = optional("gguf", "gguf", path).GGMLQuantizationType(kind).name
    try:
        _dequantised(path, np.zeros((1, tensor.block[1]), np.uint8), kind)
    except NotImplementedError:
        what = f"is of the type {name}, which the package gguf does not dequantise"
        raise CheckpointError(path, what, tensor.entry.name) from None
    return name


def _dequantised(path: Path, blocks: np.ndarray, kind: int) -> np.ndarray:
    """The entries of whole blocks, one in a row, as a flat array."""
    package = optional("gguf", "gguf", path)
    with np.errstate(all="ignore"):  # scales of a stranger may be infinite
        return optional("gguf.quants", "gguf", path).dequantize(blocks, package.GGMLQuantizationType(kind)).reshape(-1)


class _Header:
    """Reads the header from its first byte on."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file, self.numbers = path, file, 0
        self.size = file.seek(0, 2)
        self.limit = min(self.size, MOST_HEADER)
        file.seek(0)
        if self._take(4) != b"GGUF":
            raise CheckpointError(path, "is not a GGUF file")
        version = self._number(4)
        if version not in (2, 3):
            raise CheckpointError(path, f"is GGUF of version {version} or big-endian, expected 2 or 3")
        self.count, keys = self._number(8), self._number(8)
        self.alignment, self.architecture = 32, ""
        seen: set[str] = set()
        for _ in range(keys):
            self._key(seen)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
        """Name, shape, type and offset of each."""
        for _ in range(self.count):
            name = self._text()
            axes = self._number(4)
            if axes > MOST_AXES:
                raise CheckpointError(self.path, f"has {axes} axes, expected {MOST_AXES} at most", name)
            shape = tuple(self._number(8) for _ in range(axes))[::-1]
            yield name, shape, self._number(4), self._number(8)

    def _key(self, seen: set[str]) -> None:
        name = self._text()
        if name in seen:
            raise CheckpointError(self.path, "stands there twice", name)
        seen.add(name)
        kind = self._number(4)
        if name == "general.architecture" and kind == _TEXT:
            self.architecture = self._text()
        elif name == "general.alignment":
            self.alignment = self._number(4) if kind == _UINT32 else 0
            if not 1 <= self.alignment <= 2**20 or self.alignment & (self.alignment - 1):
                raise CheckpointError(self.path, f"is {self.alignment}, expected a uint32 that is a power of two", name)
        else:
            self._skip_value(name, kind)

    def _skip_value(self, name: str, kind: int, depth: int = 0) -> None:
        if kind in _SIZES:
            self._skip(_SIZES[kind])
        elif kind == _TEXT:
            self._skip(self._number(8))
        elif kind == _LIST and depth < 8:
            inner, count = self._number(4), self._number(8)
            if inner in _SIZES:
                self._skip(_SIZES[inner] * count)
            else:
                for _ in range(count):
                    self._skip_value(name, inner, depth + 1)
        else:
            raise CheckpointError(self.path, f"has a value of the type {kind}, which GGUF has not", name)

    def _text(self) -> str:
        length = self._number(8)
        if length > 65_535:
            raise CheckpointError(self.path, f"is damaged: a name takes {length} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise CheckpointError(self.path, "is damaged: a name is no text") from None

    def _number(self, nbytes: int) -> int:
        self.numbers += 1
        if self.numbers > MOST_NUMBERS:
            raise CheckpointError(self.path, f"has a header of more than {MOST_NUMBERS:,} numbers")
        return int.from_bytes(self._take(nbytes), "little")

    def _take(self, count: int) -> bytes:
        data = self.file.read(count) if count <= self.limit - self.file.tell() else b""
        if len(data) < count:
            raise self._truncated()
        return data

    def _skip(self, count: int) -> None:
        if count > self.limit - self.file.tell():
            raise self._truncated()
        self.file.seek(count, 1)

    def _truncated(self) -> CheckpointError:
        return CheckpointError(self.path, f"is truncated or no GGUF file: its header needs more than {self.limit} bytes")


def _placed(path: Path, described: list[tuple[str, tuple[int, ...], int, int]], header: _Header) -> dict[str, Tensor]:
    """The tensors in the order in which they lie, each within the file and behind the one before."""
    start = -(-header.file.tell() // header.alignment) * header.alignment
    found: dict[str, Tensor] = {}
    position = 0
    for name, shape, kind, offset in sorted(described, key=lambda x: x[3]):
        tensor = _tensor(path, name, shape, kind)
        if name in found:
            raise CheckpointError(path, "stands there twice", name)
        if offset % header.alignment or offset < position:
            raise CheckpointError(
                path, f"begins at {offset}, expected a multiple of {header.alignment} from {position} on", name
            )
        position = offset + tensor.span.nbytes
        if start + position > header.size:
            raise CheckpointError(path, f"ends at byte {start + position}, the file has {header.size}: truncated?", name)
        found[name] = Tensor(tensor.entry, Span(path, start + offset, tensor.span.nbytes), tensor.quantised, tensor.block)
    return found


def _tensor(path: Path, name: str, shape: tuple[int, ...], kind: int) -> Tensor:
    """A tensor that has not been placed yet."""
    if kind in STORED:
        entry = checked_entry(path, name, STORED[kind], shape)
        return Tensor(entry, Span(path, 0, entry.nbytes), None, (1, DTYPES[entry.dtype].itemsize))
    entry = checked_entry(path, name, "float32", shape)
    package: Any = optional("gguf", "gguf", path)
    sizes = {int(key): value for key, value in package.GGML_QUANT_SIZES.items()}
    if kind not in sizes:
        raise CheckpointError(path, f"has the type {kind}, which the package gguf does not know", name)
    entries, nbytes = sizes[kind]
    if not shape or shape[-1] % entries:
        raise CheckpointError(path, f"has the shape {shape}, expected rows of a multiple of {entries}", name)
    return Tensor(entry, Span(path, 0, math.prod(shape) // entries * nbytes), kind, (entries, nbytes))
