"""Which tensors of a model that is being written lie on the disk, so that an interrupted merge can go on."""

import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

FLUSH = 2**26
"""Bytes after which what has been written is waited for and noted: a crash loses no more."""

SECONDS = 2.0
"""After which it is noted too."""

Note = Mapping[str, Any]


class Journal:
    """Notes about whole tensors, each written once the tensor itself lies on the disk.

    Attributes:
        found: notes of an earlier run of the same merge, by tensor.
    """

    def __init__(self, path: Path, fingerprint: str, sync: Callable[[], None]):
        """Open, and keep the notes that are there if they are of the same merge.

        Args:
            path: of the file, in a folder that exists.
            fingerprint: of the merge; notes under another one are forgotten.
            sync: returns when what was written of tensors before the call lies on the disk.
        """
        self._sync, self._file = sync, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.found = _read(self._file, fingerprint)
        lines = [{"fingerprint": fingerprint}, *self.found.values()]
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        _append(self._file, lines)
        self._waiting: list[Note] = []
        self._bytes, self._flushed, self._mutex = 0, time.monotonic(), Lock()
        self._flusher, self._flushes = ThreadPoolExecutor(1), list[Future[None]]()

    def add(self, note: Note) -> None:
        """Note a tensor ("name", "nbytes") that has been written; from time to time, in a thread, wait for the disk."""
        with self._mutex:
            self._waiting.append(note)
            self._bytes += note["nbytes"]
            if self._bytes < FLUSH and time.monotonic() < self._flushed + SECONDS:
                return
            notes, self._waiting, self._bytes, self._flushed = self._waiting, [], 0, time.monotonic()
            self._flushes.append(self._flusher.submit(self._flush, notes))

    def close(self, *, keep: bool) -> None:
        """Close the file; `keep` waits for the disk first and notes all that has been written.

        Raises:
            ValueError: that a tensor could not be written to the disk after all.
        """
        try:
            if keep:
                self._flush(self._waiting)
            self._flusher.shutdown(cancel_futures=not keep)
            for flush in self._flushes:
                if not flush.cancelled():
                    flush.result()
        finally:
            self._flusher.shutdown(cancel_futures=True)
            os.close(self._file)

    def _flush(self, notes: list[Note]) -> None:
        self._sync()
        _append(self._file, notes)
        os.fsync(self._file)


def _append(file: int, notes: list[Any]) -> None:
    os.write(file, "".join(json.dumps(note) + "\n" for note in notes).encode())


def _read(file: int, fingerprint: str) -> dict[str, Note]:
    """The notes that are whole; the last line may have been cut."""
    with os.fdopen(os.dup(file), "rb") as stream:
        lines = stream.read().split(b"\n")
    try:
        if json.loads(lines[0]) != {"fingerprint": fingerprint}:
            return {}
        notes = [json.loads(line) for line in lines[1:-1]]
        return {note["name"]: note for note in notes}
    except (ValueError, KeyError, TypeError):
        return {}
