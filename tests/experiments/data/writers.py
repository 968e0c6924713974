"""Tiny files of each format, as their publishers write them."""

import lzma
from io import BytesIO
from pathlib import Path

import numpy as np

RNG = np.random.default_rng(7)


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
