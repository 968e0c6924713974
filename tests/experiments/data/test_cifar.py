"""CIFAR as its authors publish it: the Python and the binary version, in folders and in archives."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from experiments.data import load, load_images
from tests.experiments.data.writers import pixels, python_2, write_archive, write_binary_cifar10

BATCHES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]


def python_batches(each: int = 3) -> dict[str, bytes]:
    """The six files of CIFAR-10, each with images and labels of its own."""
    return {
        name: python_2({"data": rows(k, each), "labels": [(k + y) % 10 for y in range(each)]}) for k, name in enumerate(BATCHES)
    }


def rows(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def check_python_batches(path: Path) -> None:
    data = load("cifar10", path)
    assert data.train.labels.tolist() == [(k + y) % 10 for k in range(5) for y in range(3)]
    assert data.test.labels.tolist() == [5, 6, 7]
    assert np.array_equal(data.test.images[1, :, :, 2].ravel(), rows(5, 3)[1, 2048:])
    assert np.array_equal(data.train.images[3], rows(1, 3)[0].reshape(3, 32, 32).transpose(1, 2, 0))
    assert data.name == "CIFAR-10, 15 of its training images"


def test_python_batches_in_a_folder_or_the_folder_around_it(tmp_path):
    write(tmp_path / "cifar-10-batches-py", python_batches())
    check_python_batches(tmp_path)
    check_python_batches(tmp_path / "cifar-10-batches-py")


def test_python_batches_in_their_archive(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    write_archive(archive, readme=b"words", **dict(reversed(python_batches().items())))
    check_python_batches(tmp_path)
    check_python_batches(archive)
    check_python_batches(archive.rename(tmp_path / "mine.tgz"))


@pytest.mark.parametrize("packed", [False, True])
def test_the_python_version_of_cifar100(tmp_path, packed):
    files = {
        part: pickle.dumps({b"data": rows(count, count), b"fine_labels": [99] * count, b"coarse_labels": [1] * count}, 2)
        for part, count in (("train", 4), ("test", 2))
    }
    if packed:
        write_archive(tmp_path / "cifar-100-python.tar.gz", **files)
    else:
        write(tmp_path / "cifar-100-python", files)
    data = load("cifar100", tmp_path)
    assert data.train.labels.tolist() == [99] * 4
    assert np.array_equal(data.test.images[0, :, :, 0].ravel(), rows(2, 2)[0, :1024])


def test_the_binary_version_of_cifar10(tmp_path):
    """One byte of label, then 3072 of red, green and blue."""
    write_binary_cifar10(tmp_path)
    images = load_images(tmp_path)
    assert images.name == "CIFAR-10, 20 of its training images"
    assert [len(part.labels) for part in images[1:]] == [18, 2, 4]
    first = np.fromfile(tmp_path / "test_batch.bin", np.uint8).reshape(4, -1)
    test = load("cifar10", tmp_path).test
    assert test.labels.tolist() == images.test.labels.tolist() == first[:, 0].tolist()
    assert np.array_equal(test.images[2, :, :, 1].ravel(), first[2, 1 + 1024 : 1 + 2048])


def test_the_binary_version_of_cifar100(tmp_path):
    """Two bytes of label, the coarse one first."""
    for part, count in (("train", 3), ("test", 2)):
        content = np.random.default_rng(count).integers(0, 100, (count, 3074), dtype=np.uint8)
        content.tofile(tmp_path / f"{part}.bin")
    data = load("cifar100", tmp_path)
    assert data.test.labels.tolist() == content[:, 1].tolist()
    assert np.array_equal(data.test.images[0, 0, :, 0], content[0, 2:34])


def test_a_binary_version_that_is_cut_off(tmp_path):
    write_binary_cifar10(tmp_path)
    batch = tmp_path / "data_batch_3.bin"
    whole = batch.read_bytes()
    for size in (len(whole) - 3073, 0):
        batch.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"data_batch_3.bin: got {size:,} bytes, expected 12,292, as in data_batch_1.bin"):
            load("cifar10", tmp_path)
    batch.unlink()
    with pytest.raises(ValueError, match=r"data_batch_3.bin: got no such file, expected all six batches of CIFAR-10"):
        load("cifar10", tmp_path)
    (tmp_path / "train.bin").write_bytes(b"12345")
    (tmp_path / "test.bin").write_bytes(b"")
    data = load("cifar100", tmp_path)
    with pytest.raises(ValueError, match=r"train.bin: got 5 bytes, expected a multiple of 3,074: 2 of label and 3,072"):
        _ = data.train
    with pytest.raises(ValueError, match=r"test.bin: got 0 bytes, expected a multiple of 3,074"):
        _ = data.test


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"labels": [1, 2]}, "got a dictionary of labels, expected 'data' in it"),
        ({"data": rows(0, 2)}, "got a dictionary of data, expected 'labels' in it"),
        (
            {"data": rows(0, 2), "labels": [1]},
            "got labels that are not 2 numbers, expected a number from 0 to 9 for each image",
        ),
        ({"data": rows(0, 2), "labels": [1, 10]}, "got labels that are not 2 numbers, expected a number from 0 to 9"),
        (
            {"data": pixels(2, 3071), "labels": [1, 2]},
            r"got data of shape \(2, 3071\), expected bytes of shape \(images, 3072\)",
        ),
        ({"data": [1, 2], "labels": [1, 2]}, r"got data of shape \(2,\), expected bytes"),
    ],
)
def test_batches_that_are_none(tmp_path, content, said):
    write(tmp_path, python_batches() | {"test_batch": python_2(content)})
    with pytest.raises(ValueError, match=rf"test_batch: {said}"):
        _ = load("cifar10", tmp_path).test


def test_files_that_are_missing_or_damaged(tmp_path):
    files = python_batches()
    write(tmp_path / "a", {name: files[name] for name in BATCHES[:3]})
    with pytest.raises(ValueError, match=r"data_batch_4: got no such file, expected all of data_batch_1, data_batch_2"):
        _ = load("cifar10", tmp_path / "a").train
    archive = tmp_path / "cifar-10-python.tar.gz"
    write_archive(archive, **{name: files[name] for name in BATCHES[:5]})
    with pytest.raises(
        ValueError, match=r"cifar-10-python.tar.gz: got an archive without test_batch, expected one with test_b"
    ):
        _ = load("cifar10", tmp_path).test
    archive.write_bytes(archive.read_bytes()[:9000])
    for part in ("train", "test"):
        with pytest.raises(ValueError, match=r"tar.gz: got a file that cannot be read \(.*\), expected a tar archive"):
            getattr(load("cifar10", tmp_path), part)
    archive.write_bytes(b"")
    with pytest.raises(ValueError, match=r"tar.gz: got an empty file, expected a tar archive"):
        _ = load("cifar10", archive).train


def test_a_file_in_an_archive_that_is_too_large(tmp_path, monkeypatch):
    write_archive(tmp_path / "cifar-10-python.tar.gz", **python_batches())
    monkeypatch.setattr("experiments.data.archives.MOST_BYTES", 5000)
    with pytest.raises(ValueError, match=r"got [\d,]+ bytes of data_batch_1, expected 5,000 at most"):
        _ = load("cifar10", tmp_path).train
