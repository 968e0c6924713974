"""Peak memory of reading a file of PyTorch of 1 GB: `python -m experiments.benchmarks.torch_memory`.

Writes such a file as zip archive and as legacy pickle (no PyTorch needed), opens each and reads every tensor in 16 MB pieces,
every second one transposed, as a merge does. Prints by how many MB the anonymous memory of the process grew, and its peak.
"""

import struct
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import typer

from npmerge.checkpoint.torch_sharded import open_torch

ROWS, COLUMNS, TENSORS = 8192, 4096, 8
PIECE = 2**22
"""Entries read at once: 16 MB."""

STEP = 0.002
MB = 2**20


def pickled() -> bytes:
    """A state dict of float32 tensors on storages of their own, every second one transposed."""
    data = b"\x80\x02}("
    for number in range(TENSORS):
        kind = b"(" + text("storage") + b"ctorch\nFloatStorage\n"
        storage = kind + text(str(number)) + text("cpu") + integer(ROWS * COLUMNS) + b"tQ"
        shape, strides = ((COLUMNS, ROWS), (1, COLUMNS)) if number % 2 else ((ROWS, COLUMNS), (COLUMNS, 1))
        layout = b"".join(integer(x[0]) + integer(x[1]) + b"\x86" for x in (shape, strides))
        data += text(f"layer{number}.weight") + b"ctorch._utils\n_rebuild_tensor_v2\n("
        data += storage + integer(0) + layout + b"\x89NtR"
    return data + b"u."


def text(value: str) -> bytes:
    """A text of a pickle."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value: int) -> bytes:
    """A number of a pickle."""
    return b"J" + struct.pack("<i", value)


def write_zip(path: Path, storage: bytes) -> None:
    """A zip archive whose storages are the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("model/data.pkl", pickled())
        for number in range(TENSORS):
            archive.writestr(f"model/data/{number}", storage)


def write_legacy(path: Path, storage: bytes) -> None:
    """A legacy pickle whose storages are the same bytes."""
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    version, system = b"\x80\x02M\xe9\x03.", b"\x80\x02}" + text("little_endian") + b"\x88s."
    keys = b"\x80\x02](" + b"".join(text(str(x)) for x in range(TENSORS)) + b"e."
    with path.open("wb") as file:
        file.write(magic + version + system + pickled() + keys)
        for _ in range(TENSORS):
            file.write((ROWS * COLUMNS).to_bytes(8, "little") + storage)


def anonymous() -> int:
    """Anonymous memory of this process in bytes: RssAnon of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this runs on Linux")


class Watch:
    """The highest anonymous memory while it is entered, asked every `STEP` seconds."""

    def __enter__(self) -> "Watch":
        self.before = self.peak = anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(STEP):
            self.peak = max(self.peak, anonymous())


def read(path: Path) -> int:
    """Open it and read every tensor in pieces; bytes read."""
    model, total = open_torch(path), 0
    for name, entry in model.entries.items():
        for start in range(0, entry.size, PIECE):
            total += model.read(name, start, min(PIECE, entry.size - start)).nbytes
    return total


def main() -> None:
    """Print a line for each format."""
    storage = np.random.default_rng(0).standard_normal(ROWS * COLUMNS, np.float32).tobytes()
    with tempfile.TemporaryDirectory() as folder:
        paths = {"zip": Path(folder) / "zip.pt", "legacy": Path(folder) / "legacy.pt"}
        write_zip(paths["zip"], storage)
        write_legacy(paths["legacy"], storage)
        del storage
        for kind, path in paths.items():
            begin = time.perf_counter()
            with Watch() as watch:
                total = read(path)
            seconds, grown = time.perf_counter() - begin, (watch.peak - watch.before) / MB
            line = f"{kind}: {total / MB:.0f} MB read in {seconds:.1f} s, anonymous memory {grown:+.0f} MB"
            typer.echo(f"{line} (peak {watch.peak / MB:.0f})")


if __name__ == "__main__":
    main()
