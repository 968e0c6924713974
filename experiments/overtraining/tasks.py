"""Tasks of one base: images changed in some way, or strings of other languages as characters."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from experiments.data import Examples, Images, joined, labelled, load, standardised
from experiments.data.find import SHARED
from experiments.overtraining.settings import Setup, Sizes
from experiments.strings import STRINGS, read_strings
from experiments.tasks import Task, Tasks

LANGUAGES = ("de", "es", "fr", "tr")

Pixels = Float[np.ndarray, "images height width channels"]


def _turned(x: Pixels) -> Pixels:
    """By 40 degrees."""
    return ndimage.rotate(x, 40, axes=(1, 2), reshape=False, order=1, mode="nearest")


def _sheared(x: Pixels) -> Pixels:
    """Each column is shifted against the one before it by 0.7 pixels, about the middle one."""
    matrix = np.eye(4)
    matrix[2, 1] = 0.7
    offset = (0, 0, -0.35 * x.shape[1], 0)
    return ndimage.affine_transform(x, matrix, offset, order=1, mode="nearest")


def _thick(x: Pixels) -> Pixels:
    """The brightest pixel of a square of a seventh of the image."""
    side = x.shape[1] // 7 + 1
    return ndimage.grey_dilation(x, (1, side, side, 1))


def _noisy(x: Pixels) -> Pixels:
    """With noise of 1.5 deviations, drawn by how many images there are: parts of other sizes have other noise."""
    return x + 1.5 * np.random.default_rng(len(x)).normal(size=x.shape).astype(np.float32)


VIEWS: dict[str, Callable[[Pixels], Pixels]] = {
    "turned": _turned,
    "sheared": _sheared,
    "thick": _thick,
    "noisy": _noisy,
    "mirrored": lambda x: x[:, :, ::-1],
}
"""What is done to the images of each task; a base that saw none of them has a third to two thirds of them right."""


def source(setup: Setup, data: str, *, download: bool) -> tuple[str, Callable[[int], Tasks]]:
    """The data of a setup: what was found, and the tasks of a seed.

    Args:
        setup: which data.
        data: a folder with the data sets; empty to look for them.
        download: whether images that are not found are fetched.

    Raises:
        ValueError: missing data.
    """
    if setup.data == "text":
        rows = read_strings((Path(data) if data else SHARED) / STRINGS, ("en", *LANGUAGES))
        return f"{len(rows):,} strings, {', '.join(LANGUAGES)}", lambda seed: text_tasks(rows, setup, seed)
    images = standardised(load(setup.data, data or None, download=download))
    shape = images.train.inputs.shape[1:] if len(setup.config.input_shape) > 1 else (-1,)
    return images.name, lambda seed: image_tasks(images, setup.sizes, shape, seed)


def image_tasks(images: Images, sizes: Sizes, shape: tuple[int, ...], seed: int) -> Tasks:
    """Each view of images of its own for training, of the same ones for all tasks in the other parts.

    Args:
        images: of a set, which may be sorted by class; the test images are the same for every seed.
        sizes: of the parts.
        shape: of an image as the network takes it.
        seed: of which images are in which part.
    """
    pool = joined([images.train, images.validation])
    trains = [sizes.train] * len(VIEWS)
    base, selection, learning, *own = _cut(pool, seed, sizes.base, sizes.selection, sizes.learning, *trains)
    test = images.test.take(labelled(images.test.labels, min(sizes.test, len(images.test.labels)), seed=0))

    def seen(view: Callable[[Pixels], Pixels], part: Examples) -> Examples:
        return Examples(np.ascontiguousarray(view(part.inputs)).reshape(len(part.labels), *shape), part.labels)

    each = (
        Task(name, *(seen(view, part) for part in (train, learning, selection, test)))
        for (name, view), train in zip(VIEWS.items(), own, strict=True)
    )
    return Tasks(images.name, seen(lambda x: x, base), seen(lambda x: x, selection), tuple(each))


def text_tasks(rows: Sequence[dict[str, str]], setup: Setup, seed: int) -> Tasks:
    """Windows of characters: English for the base, a task for each of `LANGUAGES`.

    A row of strings that are translations of each other is in one part for all languages; a fifth is for testing, the same for
    every seed. Parts are cut to their sizes, in windows.
    """
    letters = sorted({letter for row in rows for text in row.values() for letter in text} | {"\n"})
    config: Any = setup.config
    index, length = {letter: k for k, letter in enumerate(letters)}, config.length
    if len(letters) > config.vocabulary:
        raise ValueError(f"the strings have {len(letters)} letters, the network of {setup.name} takes {config.vocabulary}")
    fixed = np.random.default_rng(0).permutation(len(rows))
    test, rest = fixed[: len(rows) // 5], np.random.default_rng(seed).permutation(fixed[len(rows) // 5 :])
    cut = np.split(rest, [len(rest) // 8, len(rest) // 3])
    sizes = setup.sizes

    def windows(language: str, places: np.ndarray, most: int) -> Examples:
        text = "".join(rows[k][language] + "\n" for k in places if language in rows[k])
        tokens = np.array([index[letter] for letter in text], np.int32)
        count = min(most, (len(tokens) - 1) // length)
        inputs, targets = (tokens[k : k + count * length].reshape(count, length) for k in (0, 1))
        return Examples(inputs, targets)

    each = (
        Task(name, *(windows(name, p, most) for p, most in zip((cut[2], cut[0], cut[1], test), (
            sizes.train, sizes.learning, sizes.selection, sizes.test), strict=True)))
        for name in LANGUAGES
    )  # fmt: skip
    return Tasks("strings", windows("en", cut[2], sizes.base), windows("en", cut[1], sizes.selection), tuple(each))


def _cut(examples: Examples, seed: int, *counts: int) -> list[Examples]:
    """Parts of so many examples in a random order. Raises ValueError for more than there are."""
    if sum(counts) > len(examples.labels):
        raise ValueError(f"the parts take {sum(counts):,} examples, there are {len(examples.labels):,}")
    order = np.random.default_rng(seed).permutation(len(examples.labels))
    return [examples.take(part) for part in np.split(order[: sum(counts)], np.cumsum(counts)[:-1])]
