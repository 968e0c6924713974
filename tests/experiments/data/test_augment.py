"""Flips and crops against a loop over images, and the batches that replace `npmerge.shuffled`."""

import json

import numpy as np
import pytest

import npmerge as nm
from experiments.data.augment import augmented, crop_and_flip

RNG = np.random.default_rng(0)


def test_crops_and_flips_are_those_of_a_loop():
    images = RNG.normal(size=(6, 5, 7, 3)).astype(np.float32)
    top, left = RNG.integers(0, 5, (2, 6))
    flipped = np.array([True, False] * 3)
    expected = []
    for k in range(6):
        padded = np.pad(images[k], ((2, 2), (2, 2), (0, 0)))
        crop = padded[top[k] : top[k] + 5, left[k] : left[k] + 7]
        expected.append(crop[:, ::-1] if flipped[k] else crop)
    assert np.array_equal(crop_and_flip(images, top, left, flipped, padding=2), np.stack(expected))


def test_batches_are_those_of_shuffled_with_changed_images():
    images = np.arange(1, 21, dtype=np.float32)[:, None, None, None] * np.ones((20, 8, 8, 3), np.float32)
    labels = np.arange(20)
    plain, changed = nm.shuffled(images, labels, 6, seed=4), augmented(images, labels, 6, seed=4)
    for _ in range(5):
        (x, y), (z, w) = next(plain), next(changed)
        assert y.tolist() == w.tolist()
        assert z.dtype == np.float32
        assert z.max((1, 2, 3)).tolist() == x.max((1, 2, 3)).tolist()  # the images are one grey each, with zeros around


def test_every_offset_and_both_flips_are_as_likely():
    image = np.zeros((1, 3, 3, 1), np.float32)
    image[0, 1, 1], image[0, 1, 2] = 1, 2
    seen = np.concatenate([next(batches)[0] for batches in [augmented(image, np.zeros(1), 9000, seed=0, padding=1)]])
    offsets = np.argwhere(seen[..., 0] == 1)[:, 1:]
    tally = np.bincount(offsets @ [3, 1], minlength=9)
    assert tally == pytest.approx(1000, abs=150)  # five deviations
    right = (seen[:, :, 1:, 0] == 2).any((1, 2)) & (seen[..., 0] == 1).any((1, 2)) & (np.diff(seen[..., 0]) == 1).any((1, 2))
    left = (np.diff(seen[..., 0]) == -1).any((1, 2)) & (seen[:, :, :-1, 0] == 2).any((1, 2))
    assert right.sum() == pytest.approx(left.sum(), abs=450)


def test_it_goes_on_where_it_was_left():
    images, labels = RNG.normal(size=(10, 4, 4, 1)), np.arange(10)
    first, second = (augmented(images, labels, 4, seed=1) for _ in range(2))
    next(first)
    second.set_state(json.loads(json.dumps(first.get_state())))
    for got, expected in zip(next(second), next(first), strict=True):
        assert np.array_equal(got, expected)


def test_without_padding_images_are_only_flipped():
    images = RNG.normal(size=(10, 4, 4, 1))
    batch, which = next(augmented(images, np.arange(10), 10, seed=0, padding=0))
    same = [np.array_equal(x, images[k]) for x, k in zip(batch, which, strict=True)]
    turned = [np.array_equal(x, images[k][:, ::-1]) for x, k in zip(batch, which, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert 0 < sum(same) < 10


def test_what_it_is_and_what_it_refuses():
    batches = augmented(np.zeros((4, 8, 8, 3)), np.zeros(4), 2, seed=5)
    assert repr(batches) == "augmented(4 examples, 2 in a batch, seed=5, padding=4)"
    with pytest.raises(ValueError, match=r"measuring needs batches that end: got augmented\(...\)"):
        nm.evaluate(lambda v, x: x, {}, batches)
    with pytest.raises(ValueError, match=r"augmented images must be \(n, height, width, channels\), got shape \(4, 64\)"):
        augmented(np.zeros((4, 64)), np.zeros(4), 2, seed=0)
