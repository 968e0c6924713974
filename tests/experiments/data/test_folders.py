"""Folders of images: by class, by part and class, by domain and class."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.data import load
from experiments.data.folders import DOMAINS
from tests.experiments.data.writers import pixels


def write(folder: Path, counts: list[int], shape: tuple[int, ...], end: str = "png") -> np.ndarray:
    """So many images in each class, all in the order in which they are read."""
    images = pixels(sum(counts), *shape)
    numbered = iter(images)
    for label, count in enumerate(counts):
        (folder / f"class {label}").mkdir(parents=True)
        for k in range(count):
            Image.fromarray(next(numbered)).save(folder / f"class {label}" / f"{k:03}.{end}")
    return images


def test_training_and_test_folders(tmp_path):
    train, test = (write(tmp_path / part, counts, (32, 32, 3)) for part, counts in (("train", [2] * 10), ("test", [1] * 10)))
    (tmp_path / "train" / "class 0" / "notes.txt").write_text("not an image")
    data = load("cifar10", tmp_path)
    assert np.array_equal(data.train.images, train)
    assert np.array_equal(data.test.images, test)
    assert data.train.labels.tolist() == np.repeat(np.arange(10), 2).tolist()
    assert data.train.names["label"][7] == "class 7"
    (tmp_path / "test").rename(tmp_path / "other")
    with pytest.raises(ValueError, match=r"test: got no such folder, expected it beside train"):
        _ = load("cifar10", tmp_path).test


def test_classes_alone_are_divided_here(tmp_path):
    images = write(tmp_path, [5] * 10, (28, 28))
    data = load("mnist", tmp_path)
    assert np.bincount(data.test.labels).tolist() == [1] * 10
    assert np.bincount(data.train.labels).tolist() == [4] * 10
    assert np.array_equal(data.whole.images[..., 0], images)


def test_images_of_another_size_or_colour(tmp_path):
    for k in range(10):
        (tmp_path / "train" / f"{k}").mkdir(parents=True)
        Image.new("RGB", (64, 48), (10 * k, 200, 30)).save(tmp_path / "train" / f"{k}" / "x.png")
        Image.new("P", (32, 32), 1).save(tmp_path / "train" / f"{k}" / "y.gif")
    images = load("cifar10", tmp_path).train.images
    assert images.shape == (20, 32, 32, 3)
    assert (images[6] == [30, 200, 30]).all()


def test_the_domains_of_pacs_are_divided_as_the_stored_arrays(tmp_path):
    for domain in DOMAINS:
        write(tmp_path / "PACS" / domain, [5] * 7, (32, 32, 3), "png")
    data = load("pacs", tmp_path)
    assert data.whole.columns["domain"].tolist() == np.repeat(np.arange(4), 35).tolist()
    assert data.train.names["domain"] == DOMAINS
    cells = data.test.columns["domain"] * 7 + data.test.labels
    assert sorted(cells.tolist()) == list(range(28))


def test_folders_that_are_wrong(tmp_path):
    write(tmp_path / "train", [1] * 9, (32, 32, 3))
    with pytest.raises(ValueError, match=r"train: got 9 folders of images, expected 10, one for each class of CIFAR-10"):
        _ = load("cifar10", tmp_path).train
    (tmp_path / "train" / "tenth").mkdir()
    damaged = tmp_path / "train" / "tenth" / "x.png"
    for content, said in ((b"", "an empty file"), (b"GIF89a but not so", "a file that cannot be read")):
        damaged.write_bytes(content)
        with pytest.raises(ValueError, match=rf"x.png: got {said}.*, expected an image"):
            _ = load("cifar10", tmp_path).train
    whole = tmp_path / "train" / "class 0" / "000.png"
    damaged.write_bytes(whole.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"x.png: got a file that cannot be read"):
        _ = load("cifar10", tmp_path).train
