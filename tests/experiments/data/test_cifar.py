"""CIFAR as its authors publish it."""

import numpy as np
import pytest

from experiments.data import load, load_images
from tests.experiments.data.writers import write_binary_cifar10


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
        rows = np.random.default_rng(count).integers(0, 100, (count, 3074), dtype=np.uint8)
        rows.tofile(tmp_path / f"{part}.bin")
    data = load("cifar100", tmp_path)
    assert data.test.labels.tolist() == rows[:, 1].tolist()
    assert np.array_equal(data.test.images[0, 0, :, 0], rows[0, 2:34])


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
    with pytest.raises(ValueError, match=r"train.bin: got 5 bytes, expected a multiple of 3,074: 2 of label and 3,072"):
        _ = load("cifar100", tmp_path).train
