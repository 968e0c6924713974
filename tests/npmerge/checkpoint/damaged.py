"""Files as strangers may send them: damaged at random, and what every reader must make of them."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.stored import StoredModel

TELLING = (0, 1, 127, 128, 255, 0xC9, 0xDD, 0xDF)
"""Bytes that mean much in the headers of these formats."""


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four changes: bits, telling bytes, an end cut off, huge numbers, bytes more, bytes elsewhere."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not changed:
            break
        at, length = rng.randrange(len(changed)), rng.choice((2, 4, 8))
        huge = 2 ** (8 * length - 1) - 1
        match rng.randrange(6):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.choice(TELLING)
            case 2:
                del changed[at:]
            case 3:
                numbers = (b"\xff" * length, huge.to_bytes(length, "little"), huge.to_bytes(length, "big"), bytes(length))
                changed[at : at + length] = rng.choice(numbers)
            case 4:
                changed[at:at] = rng.randbytes(length)
            case _:
                elsewhere = rng.randrange(len(changed))
                changed[at : at + length] = changed[elsewhere : elsewhere + length]
    return bytes(changed)


def check_survives(open_file: Callable[[Path], StoredModel], path: Path, folder: Path, times: int) -> tuple[int, int]:
    """How many damaged copies are read and how many refused; anything but a CheckpointError with the path is raised.

    Args:
        open_file: the reader.
        path: a sound file, or a folder of which one file is damaged at a time.
        folder: where the copies go.
        times: how many.
    """
    rng, read = random.Random(0), 0
    files = sorted(x for x in path.rglob("*") if x.is_file()) if path.is_dir() else [path]
    copy = folder / path.name
    for _ in range(times):
        if path.is_dir():
            shutil.copytree(path, copy)
        file = rng.choice(files)
        (copy / file.relative_to(path)).write_bytes(damaged(file.read_bytes(), rng))
        try:
            read_all(open_file(copy))
            read += 1
        except CheckpointError as error:
            assert str(folder) in str(error) and len(str(error)) < 5000
        if path.is_dir():
            shutil.rmtree(copy)
    return read, times - read


def read_all(model: StoredModel) -> None:
    """Every tensor, or an entry of those that take more than 16 MB."""
    for name, entry in model.entries.items():
        got = model.read(name, 0, None if entry.nbytes < 2**24 else 1)
        assert got.ndim == 1 and got.flags.writeable
