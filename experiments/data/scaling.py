"""From images as they are stored to what networks take: shifted, scaled, in a fixed order, validation data cut off."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Real

from experiments.data.types import DataSet, Examples, Images, Part


class Scale(NamedTuple):
    """What is taken off each channel of pixels from 0 to 1, and what the rest is divided by."""

    mean: Float32[np.ndarray, " channels"]
    deviation: Float32[np.ndarray, " channels"]


IMAGENET = Scale(np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32))
"""That of ImageNet, with which many published networks were trained, those of CIFAR too."""


def from_0_to_1(images: Real[np.ndarray, "n height width channels"]) -> Float32[np.ndarray, "n height width channels"]:
    """Bytes divided by 255; other images as they are."""
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images


def scale_of(images: Real[np.ndarray, "n height width channels"]) -> Scale:
    """Mean and deviation of each channel, of pixels from 0 to 1. Raises ValueError for a channel that never varies."""
    pixels = from_0_to_1(images)
    scale = Scale(pixels.mean((0, 1, 2)), pixels.std((0, 1, 2)))
    if not scale.deviation.all():
        raise ValueError(f"got a channel of one value in all images: deviations {scale.deviation}, expected all above 0")
    return scale


def scaled(part: Part, scale: Scale) -> Examples:
    """The images of a part, shifted and scaled."""
    inputs = ((from_0_to_1(part.images) - scale.mean) / scale.deviation).astype(np.float32)
    return Examples(inputs, part.labels)


def standardised(data: DataSet, *, validation: float = 0.1, scale: Scale | None = None) -> Images:
    """A data set as networks take it, its training set in one random order for all, the first of which are for validation.

    Args:
        data: that `load` found.
        validation: the fraction of the training images that is cut off, from 0 up to but not including 1.
        scale: by which pixels are shifted and scaled; by default that of the training images, of which each channel then has
            mean 0 and deviation 1.

    Raises:
        ValueError: another fraction; files that are damaged.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be a fraction from 0 up to but not including 1, got {validation}")
    scale = scale or scale_of(data.train.images)
    train, test = (scaled(part, scale) for part in (data.train, data.test))
    order = np.random.default_rng(0).permutation(len(train.labels))
    cut = round(validation * len(order))
    return Images(data.name, train.take(order[cut:]), train.take(order[:cut]), test)


def joined(parts: Sequence[Examples]) -> Examples:
    """All examples of several parts."""
    return Examples(np.concatenate([p.inputs for p in parts]), np.concatenate([p.labels for p in parts]))
