"""MNIST as it is published: four idx files, plain or compressed by gzip, or one file of `numpy.savez`."""

import functools
import gzip
import math
from pathlib import Path

import numpy as np

from experiments.data.archives import arrays_of
from experiments.data.faults import fault, reading
from experiments.data.types import Known, Part, Parts

STEMS = {"train": "train", "test": "t10k"}
BYTES = 0x08
"""The type of the entries of an idx file."""


def read_idx(path: Path, known: Known) -> Parts | None:
    """`train-images-idx3-ubyte` and the other three, a dot in the place of the dash before idx or not, `.gz` behind or not."""
    folder = path.parent if path.is_file() and "-ubyte" in path.name else path
    files = {part: found for part, stem in STEMS.items() if (found := _files(folder, stem))}
    return {part: functools.partial(_idx_part, *found) for part, found in files.items()} if len(files) == 2 else None


def read_npz(path: Path, known: Known) -> Parts | None:
    """`mnist.npz`, of the arrays x_train, y_train, x_test and y_test."""
    file = path / "mnist.npz" if path.is_dir() else path
    if not file.is_file() or file.suffix != ".npz":
        return None
    return {part: functools.partial(_npz_part, file, part) for part in STEMS}


def read_array(path: Path, dimensions: int) -> np.ndarray:
    """The bytes in an idx file: two zero bytes, the type, the number of dimensions, each size in four bytes, the entries.

    Raises:
        ValueError: a file that is damaged, or that holds another type or number of dimensions.
    """
    with reading(path, "an idx file"):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    begin = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, BYTES, dimensions]) or len(content) < begin:
        raise fault(path, f"{content[:4].hex(' ')} at the beginning", f"00 00 08 {dimensions:02x}, bytes in {dimensions} axes")
    shape = [int(size) for size in np.frombuffer(content[4:begin], ">u4")]
    if len(content) - begin != math.prod(shape):
        raise fault(path, f"{len(content) - begin:,} bytes of entries", f"{math.prod(shape):,}, for the shape {shape}")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)


def _files(folder: Path, stem: str) -> tuple[Path, Path] | None:
    images, labels = _file(folder, f"{stem}-images", 3), _file(folder, f"{stem}-labels", 1)
    return (images, labels) if images and labels else None


def _file(folder: Path, stem: str, dimensions: int) -> Path | None:
    names = [f"{stem}{dash}idx{dimensions}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _idx_part(images: Path, labels: Path) -> Part:
    return Part(read_array(images, 3)[..., None], read_array(labels, 1).astype(np.int32))


def _npz_part(path: Path, part: str) -> Part:
    images, labels = arrays_of(path, f"x_{part}", f"y_{part}")
    if images.dtype != np.uint8 or images.ndim != 3:
        raise fault(path, f"x_{part} of {images.dtype} and shape {images.shape}", "uint8 and (images, 28, 28)")
    return Part(images[..., None], labels.astype(np.int32))
