"""CIFAR as its authors publish it."""

import functools
from pathlib import Path

import numpy as np

from experiments.data.faults import fault
from experiments.data.types import Known, Part, Parts

PIXELS = 3 * 32 * 32


def read_binary(path: Path, known: Known) -> Parts | None:
    """The binary version: rows of one byte of label (of CIFAR-100 two, the finer one last), then red, green and blue."""
    if known.classes == 10:
        files = {"train": [path / f"data_batch_{k}.bin" for k in range(1, 6)], "test": [path / "test_batch.bin"]}
    else:
        files = {part: [path / f"{part}.bin"] for part in ("train", "test")}
    if not files["train"][0].is_file():
        return None
    if known.classes == 10:
        _check_sizes([*files["train"], *files["test"]])
    return {part: functools.partial(_binary, some, known) for part, some in files.items()}


def _check_sizes(files: list[Path]) -> None:
    """All batches of CIFAR-10 have one size: one that was cut off between two images would not be noticed otherwise."""
    for file in files:
        if not file.is_file():
            raise fault(file, "no such file", "all six batches of CIFAR-10")
        if (got := file.stat().st_size) != (first := files[0].stat().st_size):
            raise fault(file, f"{got:,} bytes", f"{first:,}, as in {files[0].name}")


def _binary(files: list[Path], known: Known) -> Part:
    return _part(np.concatenate([_rows(file, 1 if known.classes == 10 else 2) for file in files]))


def _rows(file: Path, labels: int) -> np.ndarray:
    if not file.is_file():
        raise fault(file, "no such file", "train.bin and test.bin of CIFAR-100")
    content, size = np.fromfile(file, np.uint8), labels + PIXELS
    if not len(content) or len(content) % size:
        raise fault(file, f"{len(content):,} bytes", f"a multiple of {size:,}: {labels} of label and {PIXELS:,} of pixels")
    return content.reshape(-1, size)[:, labels - 1 :]


def _part(rows: np.ndarray) -> Part:
    return Part(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0].astype(np.int32))
