"""Arrays that were stored filtered: CIFAR with its split, PACS and the emoji, which are divided here."""

import numpy as np
import pytest

from experiments.data import load
from experiments.data.stored import stored_images, stored_pixels
from tests.experiments.data.writers import pixels, write_stored


def write_cifar(folder, classes=10):
    for part, count in (("train20k", 12), ("test", 5)):
        write_stored(folder / f"x_{part}.npy.xz", pixels(count, 32, 32, 3))
    labels = {f"y_{part}": np.arange(n, dtype=np.uint8) % 10 for part, n in (("train20k", 12), ("test", 5))}
    np.savez(folder / "labels.npz", classes=np.array([f"class {k}" for k in range(classes)]), **labels)


def write_grid(folder, **arrays):
    write_stored(folder / "x32.npy.xz", pixels(len(arrays["domain"]), 32, 32, 3))
    np.savez(folder / "labels.npz", **arrays)


def test_images_come_back(tmp_path):
    images = pixels(3, 6, 5, 3)
    write_stored(tmp_path / "x.npy.xz", images)
    assert np.array_equal(stored_pixels(tmp_path / "x.npy.xz"), images)
    assert np.array_equal(stored_images(tmp_path / "x.npy.xz"), images.astype(np.float32) / 255)


def test_cifar(tmp_path):
    write_cifar(tmp_path)
    data = load("cifar10", tmp_path)
    assert np.array_equal(data.train.images, pixels(12, 32, 32, 3))
    assert np.array_equal(data.test.images, pixels(5, 32, 32, 3))
    assert data.train.labels.tolist() == [*range(10), 0, 1]
    assert data.train.labels.dtype == np.int32
    assert data.test.names["label"][3] == "class 3"
    assert data.name == "CIFAR-10, 12 of its training images"
    with pytest.raises(ValueError, match=r"labels.npz: got 10 classes, expected 100 of CIFAR-100"):
        _ = load("cifar100", tmp_path).test


def test_pacs_is_divided_within_each_class_of_each_domain(tmp_path):
    domain, y = np.repeat(np.arange(4), 35), np.tile(np.repeat(np.arange(7), 5), 4)
    write_grid(tmp_path, domain=domain, y=y, domains=np.array(list("abcd")), classes=np.array(list("tuvwxyz")))
    data = load("pacs", tmp_path)
    assert (len(data.train.labels), len(data.test.labels)) == (112, 28)
    cells = set(zip(data.test.columns["domain"].tolist(), data.test.labels.tolist(), strict=True))
    assert cells == {(d, c) for d in range(4) for c in range(7)}
    assert np.array_equal(data.whole.images, pixels(140, 32, 32, 3))
    assert data.whole.names == {"label": tuple("tuvwxyz"), "domain": tuple("abcd")}
    drawn = data.train.where(domain=2)
    assert len(drawn.labels) == 28
    assert set(drawn.columns["domain"]) == {2}
    both = np.concatenate([data.train.images, data.test.images])
    assert np.array_equal(np.unique(both, axis=0), np.unique(data.whole.images, axis=0))


def test_emoji_are_divided_the_same_in_all_styles(tmp_path):
    emoji, domain = np.tile(np.arange(90), 5), np.repeat(np.arange(5), 90)
    names = {"domains": list("abcde"), "categories": list("tuvwxyzab"), "subcategories": ["s"]}
    columns = {"emoji": emoji, "domain": domain, "category": emoji % 9, "subcategory": 0 * emoji}
    arrays = {k: np.array(v) for k, v in (names | {"short_names": [f"e{k}" for k in range(90)]}).items()}
    write_grid(tmp_path, **columns, **arrays)
    data = load("emoji", tmp_path)
    train, test = (set(part.columns["emoji"].tolist()) for part in (data.train, data.test))
    assert not train & test
    assert np.bincount(np.array(list(test)) % 9).tolist() == [2] * 9
    assert sorted(np.bincount(data.test.columns["emoji"])[list(test)]) == [5] * 18
    assert (data.test.labels == data.test.columns["emoji"] % 9).all()
    assert set(data.test.names) == {"label", "domain", "emoji", "subcategory"}


def test_damaged_files(tmp_path):
    write_cifar(tmp_path)
    test = tmp_path / "x_test.npy.xz"
    whole = test.read_bytes()
    for content, said in ((whole[:2000], "LZMAError|EOFError"), (b"", "an empty file"), (b"no xz", "LZMAError")):
        test.write_bytes(content)
        with pytest.raises(ValueError, match=rf"x_test.npy.xz: got .*({said}).*, expected an array of NumPy compressed by xz"):
            _ = load("cifar10", tmp_path).test
    write_stored(test, pixels(6, 32, 32, 3))
    with pytest.raises(ValueError, match="CIFAR-10, test: got 6 images and 5 labels"):
        _ = load("cifar10", tmp_path).test
    np.savez(tmp_path / "labels.npz", y_test=np.arange(5))
    with pytest.raises(ValueError, match=r"labels.npz: got the arrays y_test, expected 'classes' among them"):
        _ = load("cifar10", tmp_path).test


def test_a_grid_whose_labels_are_of_other_images(tmp_path):
    columns = {"domain": np.zeros(4, int), "y": np.zeros(4, int), "domains": np.array(["a"]), "classes": np.array(["b"])}
    write_grid(tmp_path, **columns)
    np.savez(tmp_path / "labels.npz", **columns | {"y": np.zeros(3, int)})
    with pytest.raises(ValueError, match=r"labels.npz: got 3 numbers of label, expected 4, the images of x32.npy.xz"):
        _ = load("pacs", tmp_path).train
    np.savez(tmp_path / "labels.npz", **columns | {"domain": np.arange(4)})
    with pytest.raises(ValueError, match=r"labels.npz: got domain 3, expected one of 1 from 0"):
        _ = load("pacs", tmp_path).train
