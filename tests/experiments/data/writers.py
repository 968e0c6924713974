"""Tiny files of each format, as their publishers write them."""

import lzma
import struct
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def write_stored(path: Path, images: np.ndarray) -> None:
    """Green taken off red and blue, then differences along columns and rows, all in uint8."""
    red, green, blue = np.moveaxis(images, -1, 0)
    planes = np.stack([red - green, green, blue - green])
    planes = np.diff(planes, axis=-1, prepend=np.uint8(0))
    planes = np.diff(planes, axis=-2, prepend=np.uint8(0))
    file = BytesIO()
    np.save(file, planes)
    path.write_bytes(lzma.compress(file.getvalue(), preset=0))


def write_binary_cifar10(folder: Path, each: int = 4) -> None:
    for k, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        rng = np.random.default_rng(k)
        rng.integers(0, 10, (each, 3073), dtype=np.uint8).tofile(folder / f"{name}.bin")


def write_archive(path: Path, **files: bytes) -> None:
    """A tar archive as those of CIFAR: all files in one folder."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(content)
            archive.addfile(member, BytesIO(content))


def python_2(content: dict[str, Any]) -> bytes:
    """The pickle of a dictionary of uint8 arrays and lists of small numbers that Python 2 and its NumPy write."""
    items = [_string(name) + (_array(x) if isinstance(x, np.ndarray) else _list(x)) for name, x in content.items()]
    return b"\x80\x02}(" + b"".join(items) + b"u."


def _string(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def _list(numbers: list[int]) -> bytes:
    return b"](" + b"".join(b"K" + bytes([n]) for n in numbers) + b"e"


def _array(array: np.ndarray) -> bytes:
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(b"M" + struct.pack("<H", n) for n in array.shape) + b"\x86"
    content = b"T" + struct.pack("<i", array.size) + array.tobytes()
    return empty + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"
