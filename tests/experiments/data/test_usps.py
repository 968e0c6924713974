"""USPS in HDF5 and in the text files of LIBSVM's site."""

import bz2
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from experiments.data import load

PIXELS = {part: np.random.default_rng(n).integers(0, 2001, (n, 256)) / 2000 for part, n in (("train", 6), ("test", 3))}


def write_h5(path: Path, **changes: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        for part, values in PIXELS.items():
            file[f"{part}/data"] = changes.get(part, values).astype(np.float32)
            file[f"{part}/target"] = np.arange(len(values), dtype=np.int32)


def lines(values: np.ndarray) -> bytes:
    """As in usps.bz2: the label from 1, then 256 times place:value, from -1 to 1."""
    each = (" ".join(f"{k + 1}:{2 * v - 1:.6f}" for k, v in enumerate(row)) for row in values)
    return "".join(f"{y + 1} {row} \n" for y, row in enumerate(each)).encode()


def write_text(folder: Path, end: str = ".bz2") -> None:
    for stem, part in (("usps", "train"), ("usps.t", "test")):
        content = lines(PIXELS[part])
        (folder / f"{stem}{end}").write_bytes(bz2.compress(content) if end else content)


def check(path: Path) -> None:
    data = load("usps", path)
    for part, values in PIXELS.items():
        found = getattr(data, part)
        assert found.images.shape == (len(values), 16, 16, 1)
        assert found.images.dtype == np.float32
        assert found.images.reshape(values.shape) == pytest.approx(values, abs=1e-6)
        assert found.labels.tolist() == list(range(len(values)))
    assert data.name == "USPS, 6 of its training images"


def test_hdf5(tmp_path):
    write_h5(tmp_path / "usps.h5")
    check(tmp_path)
    check((tmp_path / "usps.h5").rename(tmp_path / "other.h5"))


@pytest.mark.parametrize("end", ["", ".bz2"])
def test_text_of_libsvm(tmp_path, end):
    write_text(tmp_path, end)
    check(tmp_path)
    check(tmp_path / f"usps.t{end}")


def test_damaged_hdf5(tmp_path):
    file = tmp_path / "usps.h5"
    write_h5(file, test=PIXELS["test"] * 255)
    data = load("usps", file)
    assert len(data.train.labels) == 6
    with pytest.raises(ValueError, match=r"usps.h5: got pixels from 0.255 to 255, expected 0 to 1"):
        _ = data.test
    write_h5(file, test=PIXELS["test"][:, 1:], train=np.full((6, 256), np.nan))
    with pytest.raises(ValueError, match=r"usps.h5: got pixels of shape \(3, 255\), expected \(images, 256\)"):
        _ = load("usps", file).test
    with pytest.raises(ValueError, match=r"usps.h5: got pixels from nan to nan"):
        _ = load("usps", file).train
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(
        ValueError, match=r"usps.h5: got a file that cannot be read \(OSError.*\), expected an HDF5 file of USPS"
    ):
        _ = load("usps", file).train


def test_damaged_text(tmp_path):
    write_text(tmp_path)
    test = tmp_path / "usps.t.bz2"
    whole = test.read_bytes()
    test.write_bytes(bz2.compress(lines(PIXELS["test"])[:-40]))
    with pytest.raises(ValueError, match=r"usps.t.bz2: got 76\d values in 3 lines, expected 256 in each"):
        _ = load("usps", tmp_path).test
    for content, said in (
        (whole[:-50], "a file that cannot be read"),
        (b"", "an empty file"),
        (b"no bz2", "a file that cannot"),
    ):
        test.write_bytes(content)
        with pytest.raises(ValueError, match=rf"usps.t.bz2: got {said}.*, expected lines of LIBSVM"):
            _ = load("usps", tmp_path).test
    test.unlink()
    with pytest.raises(ValueError, match=r"no USPS in .*usps.t.bz2"):
        load("usps", tmp_path)


def test_without_h5py(tmp_path, monkeypatch):
    write_h5(tmp_path / "usps.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r'usps.h5: reading it needs h5py: pip install "npmerge\[experiments\]"'):
        _ = load("usps", tmp_path).train
