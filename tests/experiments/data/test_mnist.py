"""MNIST in idx files, plain and compressed, and in one file of NumPy."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from experiments.data import load
from tests.experiments.data.writers import pixels

NAMES = {"train-images": 3, "train-labels": 1, "t10k-images": 3, "t10k-labels": 1}


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def arrays(train: int = 6, test: int = 3) -> dict[str, np.ndarray]:
    labels = [np.arange(n, dtype=np.uint8) % 10 for n in (train, test)]
    return dict(zip(NAMES, [pixels(train, 28, 28), labels[0], pixels(test, 28, 28), labels[1]], strict=True))


def write(folder: Path, form: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays().items():
        content = idx(array)
        path = folder / form.format(name=name, axes=array.ndim)
        path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("form", ["{name}-idx{axes}-ubyte", "{name}-idx{axes}-ubyte.gz", "{name}.idx{axes}-ubyte"])
@pytest.mark.parametrize("place", ["", "MNIST/raw", "mnist"])
def test_idx_files(tmp_path, form, place):
    write(tmp_path / place, form)
    data = load("mnist", tmp_path)
    assert np.array_equal(data.train.images[..., 0], pixels(6, 28, 28))
    assert np.array_equal(data.test.images[..., 0], pixels(3, 28, 28))
    assert data.train.labels.tolist() == list(range(6))
    assert data.name == "MNIST, 6 of its training images"
    one = next((tmp_path / place).glob("train-labels*"))
    assert load("mnist", one).test.labels.tolist() == [0, 1, 2]


def test_a_file_of_numpy(tmp_path):
    found = arrays()
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(tmp_path / "mnist.npz", **dict(zip(names, found.values(), strict=True)))
    for path in (tmp_path, tmp_path / "mnist.npz"):
        data = load("mnist", path)
        assert np.array_equal(data.test.images[..., 0], found["t10k-images"])
        assert data.train.labels.tolist() == found["train-labels"].tolist()


@pytest.mark.parametrize("end", ["", ".gz"])
def test_damaged_idx_files(tmp_path, end):
    write(tmp_path, f"{{name}}-idx{{axes}}-ubyte{end}")
    images, labels = tmp_path / f"t10k-images-idx3-ubyte{end}", tmp_path / f"t10k-labels-idx1-ubyte{end}"
    whole = images.read_bytes()
    said = r"got a file that cannot be read \(EOFError" if end else r"got 2,182 bytes of entries, expected 2,352, for the shape"
    images.write_bytes(whole[: -100 if end else -170])
    with pytest.raises(ValueError, match=rf"t10k-images-idx3-ubyte{end}: {said}"):
        _ = load("mnist", tmp_path).test
    images.write_bytes(b"")
    with pytest.raises(ValueError, match=r"got an empty file, expected an idx file"):
        _ = load("mnist", tmp_path).test
    images.write_bytes(labels.read_bytes())
    with pytest.raises(ValueError, match=r"got 00 00 08 01 at the beginning, expected 00 00 08 03, bytes in 3 axes"):
        _ = load("mnist", tmp_path).test
    images.write_bytes(whole)
    labels.write_bytes((tmp_path / f"train-labels-idx1-ubyte{end}").read_bytes())
    with pytest.raises(ValueError, match=r"MNIST, test: got 3 images and 6 labels"):
        _ = load("mnist", tmp_path).test
    labels.unlink()
    with pytest.raises(ValueError, match=r"no MNIST in .*: expected .*t10k-labels-idx1-ubyte.gz"):
        load("mnist", tmp_path)


def test_damaged_files_of_numpy(tmp_path):
    file, found = tmp_path / "mnist.npz", arrays()
    np.savez(file, x_train=found["train-images"], y_train=found["train-labels"], x_test=np.zeros((3, 784)), y_test=np.zeros(3))
    data = load("mnist", file)
    assert len(data.train.labels) == 6
    with pytest.raises(ValueError, match=r"mnist.npz: got x_test of float64 and shape \(3, 784\), expected uint8"):
        _ = data.test
    np.savez(file, x_train=found["train-images"])
    with pytest.raises(ValueError, match=r"mnist.npz: got the arrays x_train, expected 'y_train' among them"):
        _ = load("mnist", file).train
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"mnist.npz: got a file that cannot be read \(.*\), expected a file of numpy.savez"):
        _ = load("mnist", file).train
