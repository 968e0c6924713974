"""The two parts of a data set that networks learn from, and images of no task."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from experiments.data import Examples, Images, load, scale_of, split, standardised
from experiments.data.types import DataSet
from experiments.pleas.settings import NOISE, Task


class Part(NamedTuple):
    """What one network learns, and is judged by.

    Attributes:
        name: of it, the same for all pairs that have it.
        number: likewise.
        images: labelled from 0.
    """

    name: str
    number: int
    images: Images


def parts_of(task: Task, data: DataSet, seed: int) -> tuple[Part, Part]:
    """The parts of a task, those that are drawn by a seed.

    Raises:
        ValueError: files that are damaged, a domain that the data do not have.
    """
    if task.division == "domains":
        numbers = [_domain(data, name) for name in task.domains]
        return _pair(Part(data.train.names["domain"][k], k, _of_domain(data, k)) for k in numbers)
    images = standardised(data)
    if task.division == "halves":
        halves = np.array_split(np.random.default_rng(seed).permutation(len(images.train.labels)), 2)
        return _pair(Part(f"half {k}", k, images._replace(train=images.train.take(half))) for k, half in enumerate(halves))
    mine = split("disjoint", images.train.labels, 2, seed=seed)
    classes = [np.unique(images.train.labels[places]) for places in mine]
    return _pair(Part(f"classes {k}", k, _of_classes(images, c)) for k, c in enumerate(classes))


def other_images(name: str, folder: str, count: int, shape: tuple[int, ...], *, seed: int) -> Examples:
    """Images of another data set, or noise, whose channels have mean 0 and deviation 1 as those of any task.

    Args:
        name: of the set, or "noise".
        folder: with the data sets; looked for where that is empty.
        count: how many.
        shape: (height, width, channels).
        seed: of noise, and of which images are taken.

    Raises:
        ValueError: images of another shape, missing data.
    """
    rng = np.random.default_rng(seed)
    if name == NOISE:
        return Examples(rng.normal(size=(count, *shape)).astype(np.float32), np.zeros(count, np.int32))
    found = standardised(load(name, folder or None), validation=0).train
    if found.inputs.shape[1:] != shape:
        raise ValueError(f"images of {name} have the shape {found.inputs.shape[1:]}, expected {shape}")
    return found.take(rng.permutation(len(found.labels))[:count])


def alternating(a: Examples, b: Examples) -> Examples:
    """One of each in turn, as many as the shorter has."""
    count = min(len(a.labels), len(b.labels))
    return Examples(*(np.stack([x[:count], y[:count]], 1).reshape(2 * count, *x.shape[1:]) for x, y in zip(a, b, strict=True)))


def _pair(parts: Iterable[Part]) -> tuple[Part, Part]:
    first, second = parts
    return first, second


def _domain(data: DataSet, name: str) -> int:
    names = data.train.names.get("domain", ())
    if name not in names:
        raise ValueError(f"{data.known.title} has the domains {', '.join(names) or 'none'}: got {name!r}")
    return names.index(name)


def _of_domain(data: DataSet, number: int) -> Images:
    """Scaled as the whole, so that pairs differ in images alone."""
    parts = {part: functools.partial(lambda part: getattr(data, part).where(domain=number), part) for part in ("train", "test")}
    return standardised(dataclasses.replace(data, parts=parts), scale=scale_of(data.train.images))


def _of_classes(images: Images, classes: np.ndarray) -> Images:
    def of(examples: Examples) -> Examples:
        found = examples.take(np.flatnonzero(np.isin(examples.labels, classes)))
        return found._replace(labels=np.searchsorted(classes, found.labels).astype(np.int32))

    return Images(images.name, of(images.train), of(images.validation), of(images.test))
