"""Flax's msgpack files: the format is walked here, so that arrays stay in the file and no length in it is believed."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.spans import Span, SpanModel, checked_entry
from npmerge.checkpoint.stored import Entry

DEEPEST = 64
"""Containers in one another that are followed."""

MOST_NODES = 2_000_000
"""Keys, numbers and arrays that a file may hold: each is a step of Python, and a byte is enough for one."""

MOST_TAKEN = 65_535
"""Bytes of a key."""

CHUNKED = "__msgpack_chunked_array__"
NDARRAY, COMPLEX, SCALAR = 1, 2, 3
"""Flax's extension types; see `flax.serialization`. No other is read."""

_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}

Found = tuple[Entry, tuple[Span, ...]]


def open_file(path: Path) -> SpanModel:
    """A file of `flax.serialization.to_bytes` or `msgpack_serialize`, whose tensors are named by their paths, "params/w".

    Numbers, texts and None that stand beside the arrays are left out, which a note says.

    Raises:
        CheckpointError: what is no such file, is truncated, goes on after its end, is nested too deeply, holds extension types
            that are not Flax's, or arrays whose bytes do not fill their shapes.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if not size:
                raise CheckpointError(path, "is empty")
            file.seek(0)
            walker = _Walker(path, file, size)
            tensors = list(walker.tree("", 0))
            if walker.at != size:
                raise CheckpointError(path, f"is not a msgpack file: {size - walker.at} bytes follow its end")
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from None
    left = walker.left_out
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return SpanModel(path, tensors, [f"left out, being no arrays: {', '.join(left[:5])}{more}"] if left else [])


class _Walker:
    """Goes through the bytes once; `at` is the next of them."""

    def __init__(self, path: Path, file: BinaryIO, end: int):
        self.path, self.file, self.end, self.at, self.nodes = path, file, end, 0, 0
        self.left_out: list[str] = []

    def tree(self, name: str, depth: int) -> Iterator[Found]:
        """The arrays of a node and of all below it."""
        if depth > DEEPEST:
            raise CheckpointError(self.path, f"holds more than {DEEPEST} containers in one another", name)
        kind, value = self.node(name)
        if kind == "map":
            yield from self._map(name, value, depth)
        elif kind == "array":
            for k in range(value):
                yield from self.tree(_joined(name, str(k)), depth + 1)
        elif kind == "ext" and value[0] in (NDARRAY, SCALAR):
            entry, span = self._ndarray(name, value[1])
            yield entry, (span,)
        elif kind == "ext" and value[0] != COMPLEX:
            raise CheckpointError(self.path, f"has the extension type {value[0]}, which is not Flax's", name)
        else:
            if kind in ("ext", "bin", "text"):
                self._skip(name, value[1] if kind == "ext" else value)
            self.left_out.append(name)

    def _map(self, name: str, count: int, depth: int) -> Iterator[Found]:
        seen: set[str] = set()
        for _ in range(count):
            key = self._key(name)
            if key in seen:
                raise CheckpointError(self.path, "stands there twice", _joined(name, key))
            seen.add(key)
            if key == CHUNKED:
                if len(seen) > 1:
                    raise CheckpointError(self.path, "is no chunked array as Flax writes them", name)
                yield self._chunked(name, count)
                return
            yield from self.tree(_joined(name, key), depth + 1)

    def _chunked(self, name: str, count: int) -> Found:
        """An array in several pieces: after the mark, `shape` and `chunks` as maps from "0", "1" and so on."""
        shape: list[Any] = []
        chunks: list[tuple[Entry, Span]] = []
        fields = []
        if count != 3 or self.node(name) != ("number", True):
            raise CheckpointError(self.path, "is no chunked array as Flax writes them", name)
        for _ in range(2):
            fields.append(self._key(name))
            kind, length = self.node(name)
            for k in range(length if kind == "map" else 0):
                if self._key(name) != str(k):
                    raise CheckpointError(self.path, "has chunks or a shape out of order", name)
                what, value = self.node(name)
                if fields[-1] == "shape":
                    shape.append(value if what == "number" else None)
                elif what == "ext" and value[0] == NDARRAY:
                    chunks.append(self._ndarray(name, value[1]))
                else:
                    raise CheckpointError(self.path, "has a chunk that is no array", name)
        dtypes = {entry.dtype for entry, _ in chunks}
        if sorted(fields) != ["chunks", "shape"] or len(dtypes) != 1 or any(len(x.shape) != 1 for x, _ in chunks):
            raise CheckpointError(self.path, "needs a shape and flat chunks of one dtype", name)
        (code,) = dtypes
        nbytes = sum(entry.nbytes for entry, _ in chunks)
        return checked_entry(self.path, name, DTYPES[code].name, shape, nbytes), tuple(span for _, span in chunks)

    def _ndarray(self, name: str, length: int) -> tuple[Entry, Span]:
        """The payload of an array: its shape, the name of its dtype and its bytes, in msgpack again."""
        end = self.at + length
        if end > self.end:
            raise self._truncated(name)
        fields, axes = self._expected(name, "array"), self._expected(name, "array")
        shape = [self.node(name) for _ in range(min(axes, 100))]
        dtype = self._take(name, self._expected(name, "text")).decode("ascii", "replace")
        nbytes, begin = self._expected(name, "bin"), self.at
        self._skip(name, nbytes)
        if fields != 3 or self.at != end:
            raise CheckpointError(self.path, "is no array as Flax writes them", name)
        sizes = [value if what == "number" else None for what, value in shape]
        return checked_entry(self.path, name, dtype, sizes, nbytes), Span(self.path, begin, nbytes)

    def _expected(self, name: str, kind: str) -> int:
        """The length of the next node, which must be of a kind that has one."""
        got, length = self.node(name)
        if got != kind:
            raise CheckpointError(self.path, f"is no array as Flax writes them: {got} in place of {kind}", name)
        return length

    def _key(self, name: str) -> str:
        kind, value = self.node(name)
        if kind == "number" and type(value) is int:
            return str(value)
        if kind != "text":
            raise CheckpointError(self.path, f"has a key that is {kind}, expected text", name)
        try:
            return self._take(name, value).decode()
        except UnicodeDecodeError:
            raise CheckpointError(self.path, "has a key that is no text", name) from None

    def node(self, name: str) -> tuple[str, Any]:
        """The head of the next node: what it is and its number or length; for "ext" its type and its length."""
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise CheckpointError(self.path, f"holds more than {MOST_NODES:,} values")
        byte = self._take(name, 1)[0]
        if byte < 0x80 or byte >= 0xE0:
            return "number", byte if byte < 0x80 else byte - 0x100
        if byte < 0xC0:
            return ("map", byte & 15) if byte < 0x90 else ("array", byte & 15) if byte < 0xA0 else ("text", byte & 31)
        if byte in _LENGTHS:
            kind = "bin" if byte < 0xC7 else "text" if byte < 0xDC else "array" if byte < 0xDE else "map"
            return kind, int.from_bytes(self._take(name, _LENGTHS[byte]), "big")
        if byte in _NUMBERS:
            (number,) = struct.unpack(_NUMBERS[byte], self._take(name, struct.calcsize(_NUMBERS[byte])))
            return "number", number
        if byte in _EXTENSIONS or 0xD4 <= byte <= 0xD8:
            long = byte in _EXTENSIONS
            length = int.from_bytes(self._take(name, _EXTENSIONS[byte]), "big") if long else 1 << (byte - 0xD4)
            return "ext", (self._take(name, 1)[0], length)
        if byte == 0xC1:
            raise CheckpointError(self.path, f"is not a msgpack file: the byte {byte:#x} at {self.at - 1} begins nothing")
        return "number", {0xC0: None, 0xC2: False, 0xC3: True}[byte]

    def _take(self, name: str, count: int) -> bytes:
        """The next bytes, which are in memory: of keys and numbers."""
        if count > MOST_TAKEN:
            raise CheckpointError(self.path, f"has a key of {count} bytes, expected {MOST_TAKEN} at most", name or None)
        data = self.file.read(count) if count <= self.end - self.at else b""
        if len(data) < count:
            raise self._truncated(name)
        self.at += count
        return data

    def _skip(self, name: str, count: int) -> None:
        if count > self.end - self.at:
            raise self._truncated(name)
        self.at = self.file.seek(self.at + count)

    def _truncated(self, name: str) -> CheckpointError:
        return CheckpointError(
            self.path, f"is truncated or no msgpack file: more than its {self.end} bytes are needed", name or None
        )


def _joined(name: str, key: str) -> str:
    return f"{name}/{key}" if name else key
