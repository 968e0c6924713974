"""The files beside this checkout, where they are: what is published of each set holds for what is read."""

from pathlib import Path

import numpy as np
import pytest

from experiments.data import CIFAR, load
from experiments.data.find import FOLDERS
from experiments.house import ROOT

SHARED = ROOT.parent / "shared" / "data"


def part(name: str) -> Path:
    folder = SHARED / FOLDERS.get(name, name)
    if not folder.is_dir():
        pytest.skip(f"there is no folder {CIFAR.parent / folder.name} beside this checkout")
    return folder


def test_mnist():
    data = load("mnist", part("mnist"))
    assert (data.name, len(data.train.labels), len(data.test.labels)) == ("MNIST", 60_000, 10_000)
    tally, grey = np.bincount(data.train.images.ravel(), minlength=256), np.arange(256) / 255
    mean = np.average(grey, weights=tally)
    deviation = np.sqrt(np.average((grey - mean) ** 2, weights=tally))
    assert (mean, deviation) == pytest.approx((0.13066048, 0.30810780), abs=1e-8)
    assert np.bincount(data.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_usps():
    data = load("usps", part("usps"))
    assert (data.name, len(data.train.labels), len(data.test.labels)) == ("USPS", 7_291, 2_007)
    assert np.bincount(data.test.labels).tolist() == [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]


def test_cifar100():
    data = load("cifar100", part("cifar100"))
    assert np.bincount(data.test.labels).tolist() == [100] * 100
    assert data.test.names["label"][:3] == ("apple", "aquarium_fish", "baby")
    means = data.test.images.mean((0, 1, 2)) / 255
    assert means == pytest.approx([0.5088, 0.4874, 0.4419], abs=1e-3)  # of the published test set


def test_pacs():
    data = load("pacs", part("pacs"))
    assert np.bincount(data.whole.columns["domain"]).tolist() == [2048, 2344, 1670, 3929]
    for domain in range(4):
        train, test = (np.bincount(x.where(domain=domain).labels) for x in (data.train, data.test))
        assert (test == np.round((train + test) / 5)).all()


def test_emoji():
    data = load("emoji", part("emoji"))
    assert np.bincount(data.test.columns["domain"]).tolist() == [367] * 5
    assert not set(data.test.columns["emoji"]) & set(data.train.columns["emoji"])
    both = np.bincount(data.train.labels) + np.bincount(data.test.labels)
    assert (both / 5).tolist() == [85, 157, 253, 128, 261, 361, 165, 206, 218]
