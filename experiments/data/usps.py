"""USPS: `usps.h5`, or the two text files of LIBSVM's site, compressed by bzip2 or not."""

import functools
from pathlib import Path

import numpy as np

from experiments.data.faults import fault, reading
from experiments.data.types import Known, Part, Parts

PIXELS = 16 * 16
STEMS = {"train": "usps", "test": "usps.t"}


def read_h5(path: Path, known: Known) -> Parts | None:
    """The groups `train` and `test`, each with `data`, (images, 256) from 0 to 1, and `target`."""
    file = path / "usps.h5" if path.is_dir() else path
    if not file.is_file() or file.suffix != ".h5":
        return None
    return {part: functools.partial(_h5_part, file, part) for part in STEMS}


def read_libsvm(path: Path, known: Known) -> Parts | None:
    """A line for each image: its label from 1 to 10, then `place:value`, places from 1 and values from -1 to 1."""
    folder = path.parent if path.is_file() and path.name.startswith("usps") else path
    files = {part: file for part, stem in STEMS.items() if (file := _text_file(folder, stem))}
    return {part: functools.partial(_libsvm_part, file) for part, file in files.items()} if len(files) == 2 else None


def _text_file(path: Path, stem: str) -> Path | None:
    return next((path / name for name in (f"{stem}.bz2", stem) if (path / name).is_file()), None)


def _h5_part(path: Path, part: str) -> Part:
    try:
        import h5py  # of an extra
    except ImportError:
        raise ValueError(f'{path}: reading it needs h5py: pip install "npmerge[experiments]"') from None
    with reading(path, "an HDF5 file of USPS"), h5py.File(path) as file:
        pixels, labels = file[f"{part}/data"][:], file[f"{part}/target"][:]
    return _part(path, pixels, labels, 0.0)


def _libsvm_part(path: Path) -> Part:
    from sklearn.datasets import load_svmlight_file  # slow to import

    with reading(path, "lines of LIBSVM, `label place:value ...`"):
        values, labels = load_svmlight_file(str(path), n_features=PIXELS, dtype=np.float64)
    if values.nnz != len(labels) * PIXELS:
        raise fault(path, f"{values.nnz:,} values in {len(labels):,} lines", f"{PIXELS} in each")
    return _part(path, (values.toarray() + 1) / 2, labels - 1, 1e-6)


def _part(path: Path, pixels: np.ndarray, labels: np.ndarray, slack: float) -> Part:
    if pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise fault(path, f"pixels of shape {pixels.shape}", f"(images, {PIXELS})")
    if not np.all((pixels >= -slack) & (pixels <= 1 + slack)):
        raise fault(path, f"pixels from {pixels.min():g} to {pixels.max():g}", "0 to 1 (-1 to 1 in LIBSVM's files)")
    return Part(pixels.reshape(-1, 16, 16, 1).astype(np.float32), labels.astype(np.int32))
