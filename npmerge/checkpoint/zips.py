"""Zip archives of strangers: where members lie, with sizes that have been checked; nothing is unpacked to find out."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np

from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.spans import guarded

LOCAL = b"PK\x03\x04"
LOCAL_BYTES = 30
"""Of the header before each member, without its name and its extra field."""

DEFLATE_MOST = 1032
"""Times its stored bytes that a deflated member can hold; more is a lie, and what bombs of nested members claim."""

MOST_MEMBERS = 1_000_000

STEP = 2**20


@dataclass(frozen=True)
class Member:
    """A member of an archive.

    Attributes:
        name: as stored.
        offset: at which its stored bytes begin.
        stored: bytes that it takes in the archive.
        nbytes: that it holds.
        deflated: whether those are compressed.
    """

    name: str
    offset: int
    stored: int
    nbytes: int
    deflated: bool


def read_members(path: Path) -> Mapping[str, Member]:
    """The members of an archive by name, in the order in which they lie.

    Raises:
        CheckpointError: no such archive, a damaged or truncated one, two members of one name, members that overlap, are
            encrypted, compressed otherwise than by deflate, or claim more bytes than what is stored can hold.
    """
    with opened(path) as file:
        archive = guarded(
            path, "a zip archive", lambda: zipfile.ZipFile(file), zipfile.BadZipFile, NotImplementedError, EOFError
        )
        infos, end = archive.infolist(), archive.start_dir
        if len(infos) > MOST_MEMBERS:
            raise CheckpointError(path, f"holds more than {MOST_MEMBERS:,} members")
        found: dict[str, Member] = {}
        before = 0
        for info in sorted(infos, key=lambda x: x.header_offset):
            if info.filename in found:
                raise CheckpointError(path, "stands there twice", info.filename)
            if info.header_offset < before:
                raise CheckpointError(path, "overlaps with the member before it", info.filename)
            found[info.filename] = member = _member(path, file, info)
            before = member.offset + member.stored
            if before > end:
                raise CheckpointError(path, "reaches beyond the members of the archive", info.filename)
    return found


def opened(path: Path) -> BinaryIO:
    """A file of bytes. Raises CheckpointError if it cannot be opened."""
    try:
        return path.open("rb")
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from None


def inflated(path: Path, member: Member) -> Iterator[bytes]:
    """What a deflated member holds, in pieces of at most `STEP` bytes and never more than it says.

    Raises CheckpointError for data that are damaged, or that hold more or fewer bytes.
    """
    unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with opened(path) as file:
        file.seek(member.offset)
        left, waiting = member.stored, b""
        while not unpacker.eof:
            if not waiting and left:
                waiting = file.read(min(left, STEP))
                left -= len(waiting) or left
            try:
                piece = unpacker.decompress(waiting, STEP)
            except zlib.error as error:
                raise CheckpointError(path, f"is damaged: {error}", member.name) from None
            waiting = unpacker.unconsumed_tail
            total += len(piece)
            if total > member.nbytes or not (piece or waiting or left or unpacker.eof):
                break
            if piece:
                yield piece
    if total != member.nbytes:
        how = "more" if total > member.nbytes else f"only {total}"
        raise CheckpointError(path, f"says that it holds {member.nbytes} bytes, but it holds {how}", member.name)


class Inflater:
    """Reads a deflated member from any position; forward reads one after another unpack it only once."""

    def __init__(self, path: Path, member: Member):
        self._path, self._member, self._lock = path, member, Lock()
        self._pieces: Iterator[bytes] = iter(())
        self._at, self._rest = 0, b""
        self._begun = False

    def read(self, start: int, buffer: np.ndarray) -> None:
        """Fill a buffer of bytes from position `start` on. Thread-safe. Raises CheckpointError as `inflated` does."""
        with self._lock:
            if not self._begun or start < self._at:
                self._pieces, self._at, self._rest, self._begun = inflated(self._path, self._member), 0, b"", True
            try:
                self._fill(start, buffer)
            except CheckpointError:
                self._begun = False
                raise

    def _fill(self, start: int, buffer: np.ndarray) -> None:
        stop = start + len(buffer)
        while self._at < stop:
            if not self._rest:
                self._rest = next(self._pieces, b"")
                if not self._rest:
                    raise CheckpointError(self._path, f"ends after {self._at} bytes", self._member.name)
            used = self._rest[: stop - self._at]
            begin = max(start - self._at, 0)
            if begin < len(used):
                to = self._at + begin - start
                buffer[to : to + len(used) - begin] = np.frombuffer(used, np.uint8)[begin:]
            self._at, self._rest = self._at + len(used), self._rest[len(used) :]


def _member(path: Path, file: BinaryIO, info: zipfile.ZipInfo) -> Member:
    if info.flag_bits & 1:
        raise CheckpointError(path, "is encrypted", info.filename)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CheckpointError(path, f"is compressed by method {info.compress_type}, expected none or deflate", info.filename)
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    if info.file_size > info.compress_size * DEFLATE_MOST or (not deflated and info.file_size != info.compress_size):
        raise CheckpointError(path, f"claims {info.file_size} bytes, {info.compress_size} are stored", info.filename)
    file.seek(info.header_offset)
    head = file.read(LOCAL_BYTES)
    if len(head) < LOCAL_BYTES or not head.startswith(LOCAL):
        raise CheckpointError(path, f"does not begin at byte {info.header_offset}: the archive is damaged", info.filename)
    offset = info.header_offset + LOCAL_BYTES + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    return Member(info.filename, offset, info.compress_size, info.file_size, deflated)
