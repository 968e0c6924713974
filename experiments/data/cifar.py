"""CIFAR as its authors publish it: the Python and the binary version, each in a folder or in its archive."""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.data.archives import contents, home_of
from experiments.data.faults import fault
from experiments.data.pickled import read_dictionary
from experiments.data.types import Known, Part, Parts

PIXELS = 3 * 32 * 32
FILES = {
    10: {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]},
    100: {"train": ["train"], "test": ["test"]},
}
"""Of the Python versions, by the number of classes; those of the binary versions end in `.bin`."""


def read_python(path: Path, known: Known) -> Parts | None:
    """The Python version: pickled dictionaries of rows of red, green and blue, and of labels."""
    parts = FILES[known.classes]
    home = home_of(path, parts["train"], f"cifar-{known.classes}-python.tar.gz")
    return None if home is None else _parts(home, parts, known, _batch)


def read_binary(path: Path, known: Known) -> Parts | None:
    """The binary version: rows of one byte of label (of CIFAR-100 two, the finer one last), then red, green and blue."""
    parts = {part: [f"{file}.bin" for file in files] for part, files in FILES[known.classes].items()}
    home = home_of(path, parts["train"], f"cifar-{known.classes}-binary.tar.gz")
    if home and home.is_dir() and known.classes == 10:
        _check_sizes([home / file for files in parts.values() for file in files])
    return None if home is None else _parts(home, parts, known, _rows)


Read = Callable[[Path, bytes, int], np.ndarray]
"""Rows of a label and 3,072 pixels from the content of a file, for so many classes."""


def _parts(home: Path, parts: Mapping[str, Sequence[str]], known: Known, read: Read) -> Parts:
    return {part: functools.partial(_part, home, files, known, read) for part, files in parts.items()}


def _part(home: Path, files: Sequence[str], known: Known, read: Read) -> Part:
    each = [read(home / file, content, known.classes) for file, content in zip(files, contents(home, files), strict=True)]
    rows = np.concatenate(each)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Part(np.ascontiguousarray(images), rows[:, 0].astype(np.int32))


def _rows(path: Path, content: bytes, classes: int) -> np.ndarray:
    labels = 1 if classes == 10 else 2
    size = labels + PIXELS
    if not content or len(content) % size:
        raise fault(path, f"{len(content):,} bytes", f"a multiple of {size:,}: {labels} of label and {PIXELS:,} of pixels")
    return np.frombuffer(content, np.uint8).reshape(-1, size)[:, labels - 1 :]


def _batch(path: Path, content: bytes, classes: int) -> np.ndarray:
    found, key = read_dictionary(path, io.BytesIO(content)), "labels" if classes == 10 else "fine_labels"
    if missing := [name for name in ("data", key) if name not in found]:
        raise fault(path, f"a dictionary of {', '.join(found)}", f"{missing[0]!r} in it")
    data, labels = found["data"], found[key]
    if not isinstance(data, np.ndarray) or data.shape[1:] != (PIXELS,):
        raise fault(path, f"data of shape {np.shape(data)}", f"bytes of shape (images, {PIXELS})")
    if not isinstance(labels, list) or not all(type(y) is int and 0 <= y < classes for y in labels) or len(labels) != len(data):
        raise fault(path, f"labels that are not {len(data)} numbers", f"a number from 0 to {classes - 1} for each image")
    return np.column_stack([np.array(labels, np.uint8), data])


def _check_sizes(files: Sequence[Path]) -> None:
    """All batches of CIFAR-10 have one size: one that was cut off between two images would not be noticed otherwise."""
    for file in files:
        if not file.is_file():
            raise fault(file, "no such file", "all six batches of CIFAR-10")
        if (got := file.stat().st_size) != (first := files[0].stat().st_size):
            raise fault(file, f"{got:,} bytes", f"{first:,}, as in {files[0].name}")
