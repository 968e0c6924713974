"""From stored images to what networks take: the arrays that committed results were made with."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments.data import IMAGENET, load, load_images, scaled, standardised
from experiments.data.types import DataSet, Known, Part
from tests.experiments.data.writers import pixels


def data_set(train: Part, test: Part) -> DataSet:
    known = Known("toy", train.images.shape[1:], 10, None, "here")
    return DataSet(known, "here", {"train": lambda: train, "test": lambda: test})


TRAIN = Part(pixels(20, 4, 4, 3), np.arange(20, dtype=np.int32) % 10)
TEST = Part(pixels(6, 4, 4, 3), np.arange(6, dtype=np.int32))


def test_the_digits_are_those_that_results_were_made_with():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(1).permutation(len(labels))
    train, test = ((images[part].reshape(-1, 8, 8, 1) / 16).astype(np.float32) for part in (order[360:], order[:360]))
    again = np.random.default_rng(0).permutation(len(train))
    inputs = (train - train.mean((0, 1, 2))) / train.std((0, 1, 2))
    found = load_images()
    assert found.name == "digits"
    assert np.array_equal(found.validation.inputs, inputs[again[:144]])
    assert np.array_equal(found.train.inputs, inputs[again[144:]])
    assert np.array_equal(found.train.labels, labels[order[360:]][again[144:]])
    assert np.array_equal(found.test.inputs, (test - train.mean((0, 1, 2))) / train.std((0, 1, 2)))
    assert np.array_equal(found.test.labels, labels[order[:360]])


def test_each_channel_has_mean_0_and_deviation_1():
    found = standardised(data_set(TRAIN, TEST), validation=0.25)
    assert [len(part.labels) for part in found[1:]] == [15, 5, 6]
    everything = np.concatenate([found.train.inputs, found.validation.inputs])
    assert everything.mean((0, 1, 2)) == pytest.approx([0] * 3, abs=1e-5)
    assert everything.std((0, 1, 2)) == pytest.approx([1] * 3, abs=1e-5)
    stored = TRAIN.images.astype(np.float64) / 255
    assert found.test.inputs == pytest.approx((TEST.images / 255 - stored.mean((0, 1, 2))) / stored.std((0, 1, 2)), abs=1e-5)
    assert {x.dtype for part in found[1:] for x in part} == {np.dtype(np.float32), np.dtype(np.int32)}
    pairs = {tuple(x.ravel()): y for x, y in zip(*scaled(TRAIN, IMAGENET), strict=True)}
    given = standardised(data_set(TRAIN, TEST), validation=0.25, scale=IMAGENET)
    for part in (given.train, given.validation):
        assert all(pairs[tuple(x.ravel())] == y for x, y in zip(*part, strict=True))


def test_a_given_scale():
    inputs, labels = standardised(data_set(TRAIN, TEST), scale=IMAGENET).test
    expected = (TEST.images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert inputs == pytest.approx(expected, abs=1e-5)
    assert inputs.dtype == np.float32
    assert labels.tolist() == list(range(6))


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5])
def test_fractions_that_leave_nothing(fraction):
    with pytest.raises(ValueError, match=f"validation must be a fraction from 0 up to but not including 1, got {fraction}"):
        standardised(load("digits"), validation=fraction)
    assert len(standardised(data_set(TRAIN, TEST), validation=0).validation.labels) == 0


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (TRAIN._replace(labels=TRAIN.labels[:3]), "got 20 images and 3 labels"),
        (TRAIN.take(np.arange(0)), "got 0 images and 0 labels"),
        (TRAIN._replace(labels=TRAIN.labels + 1), "got labels from 1 to 10, expected from 0 to 9"),
        (TRAIN._replace(labels=TRAIN.labels - 1), "got labels from -1 to 8, expected from 0 to 9"),
        (TRAIN._replace(images=pixels(20, 5, 4, 3)), r"got images of shape \(5, 4, 3\), expected \(4, 4, 3\)"),
    ],
)
def test_images_that_are_not_of_the_set(part, said):
    known = Known("toy", (4, 4, 3), 10, None, "here")
    with pytest.raises(ValueError, match=rf"^here: toy, train: {said}"):
        _ = DataSet(known, "here", {"train": lambda: part}).train


def test_more_images_than_were_published():
    known = Known("toy", (4, 4, 3), 10, (20, 5), "here")
    data = DataSet(known, "here", {"train": lambda: TRAIN, "test": lambda: TEST})
    assert data.name == "toy"
    with pytest.raises(ValueError, match=r"^here: toy, test: got 6 images, expected 5 at most"):
        _ = data.test


def test_a_channel_that_never_varies():
    grey = TRAIN._replace(images=np.where([True, True, False], TRAIN.images, np.uint8(0)))
    with pytest.raises(
        ValueError, match=r"got a channel of one value in all images: deviations .* 0\. *\], expected all above"
    ):
        standardised(data_set(grey, TEST))
