"""Files as strangers may send them: damaged at random, and what every reader must make of them."""

import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from npmerge.checkpoint.dtypes import DTYPES
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


def attempts(
    open_file: Callable[[Path], StoredModel], path: Path, folder: Path, times: int, seed: int = 0
) -> Iterator[tuple[bool, float]]:
    """Whether each damaged copy was read or refused, and in how many seconds; any error but a CheckpointError is raised.

    Args:
        open_file: the reader.
        path: a sound file, or a folder of which one file is damaged at a time.
        folder: where the copies go.
        times: how many.
        seed: of the damage.
    """
    rng = random.Random(seed)
    files = sorted(x for x in path.rglob("*") if x.is_file()) if path.is_dir() else [path]
    folder.mkdir(exist_ok=True)
    copy = folder / path.name
    for _ in range(times):
        if path.is_dir():
            shutil.copytree(path, copy)
        file = rng.choice(files)
        (copy / file.relative_to(path)).write_bytes(damaged(file.read_bytes(), rng))
        begun = time.perf_counter()
        try:
            read_all(open_file(copy))
            read = True
        except CheckpointError as error:
            assert str(folder) in str(error) and len(str(error)) < 5000
            read = False
        yield read, time.perf_counter() - begun
        if path.is_dir():
            shutil.rmtree(copy)


def check_survives(open_file: Callable[[Path], StoredModel], path: Path, folder: Path, times: int) -> tuple[int, int]:
    """How many damaged copies are read and how many refused, see `attempts`."""
    found = [read for read, _ in attempts(open_file, path, folder, times)]
    return sum(found), len(found) - sum(found)


def read_all(model: StoredModel) -> None:
    """Every tensor, or an entry of those that take more than 16 MB."""
    for name, entry in model.entries.items():
        got = model.read(name, 0, None if entry.nbytes < 2**24 else 1)
        assert got.ndim == 1 and got.flags.writeable


def check_holds(model: StoredModel, expected: Mapping[str, np.ndarray]) -> None:
    """The model has these tensors and no others, bit for bit, whole and in part."""
    assert set(model.entries) == set(expected)
    for name, array in expected.items():
        entry, got = model.entries[name], model.read(name)
        assert (entry.shape, entry.nbytes, DTYPES[entry.dtype]) == (array.shape, array.nbytes, array.dtype)
        assert got.dtype == array.dtype and got.tobytes() == array.tobytes() and got.flags.writeable
        assert model.read(name, entry.size // 2, entry.size // 3).tobytes() == (
            array.reshape(-1)[entry.size // 2 :][: entry.size // 3].tobytes()
        )
