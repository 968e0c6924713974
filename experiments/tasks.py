"""Three tasks for fine-tunes of one base: scikit-learn's digits by class and turned, or three domains of PACS."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from experiments.data import Examples, Scale, joined, load, load_images, scaled

MIDDLE = Scale(np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32))
"""By which the images of PACS are shifted and scaled."""


class Task(NamedTuple):
    """What one network is fine-tuned on, and what it is judged by: parts without a common image."""

    name: str
    train: Examples  # for its fine-tune
    learning: Examples  # for statistics, and for learning from a merge
    selection: Examples  # for every choice: steps, rates, hyper-parameters
    test: Examples


class Tasks(NamedTuple):
    """The tasks of one seed, and the images that the base is trained on, which none of them has."""

    name: str
    base: Examples
    base_selection: Examples
    each: tuple[Task, ...]


class Sizes(NamedTuple):
    """How many images there are for the base, for learning and for selection; fine-tuning has the others."""

    base: int
    learning: int
    selection: int


def load_tasks(folder: Path | None, sizes: Sizes, *, seed: int) -> Tasks:
    """The domains of PACS from a folder, or the digits if `folder` is None. The test part is the same for every seed."""
    return _digits(sizes, seed) if folder is None else _pacs(folder, sizes, seed)


def _digits(sizes: Sizes, seed: int) -> Tasks:
    """0 to 4 and 5 to 9 upright, and all ten turned by 90 degrees; each image is in one part, upright and turned."""
    images = load_images()
    pool = joined([images.train, images.validation])
    base, *parts = _cut(pool, seed, sizes.base, sizes.learning, sizes.selection)
    learning, selection, train = parts
    low, high, turned = zip(*(_by_task(part) for part in (train, learning, selection, images.test)), strict=True)
    each = (Task("0 to 4", *low), Task("5 to 9", *high), Task("turned", *turned))
    return Tasks("digits", joined(_by_task(base)), joined(_by_task(selection)), each)


def _by_task(part: Examples) -> tuple[Examples, Examples, Examples]:
    turned = Examples(np.ascontiguousarray(np.rot90(part.inputs, axes=(1, 2))), part.labels)
    return part.take(np.flatnonzero(part.labels < 5)), part.take(np.flatnonzero(part.labels >= 5)), turned


def _pacs(folder: Path, sizes: Sizes, seed: int) -> Tasks:
    """Art, cartoons and sketches; the base is trained on photographs. A fifth of each domain is for testing."""
    whole = load("pacs", folder).whole
    domains = {name: scaled(whole.where(domain=k), MIDDLE) for k, name in enumerate(whole.names["domain"])}
    photos, photos_selection = _cut(domains.pop("photo"), seed, len(whole.labels) // 10)
    each = tuple(Task(name.replace("_", " "), *_quartered(domain, sizes, seed)) for name, domain in domains.items())
    return Tasks("PACS", photos, photos_selection, each)


def _quartered(domain: Examples, sizes: Sizes, seed: int) -> tuple[Examples, ...]:
    test, pool = _cut(domain, 0, len(domain.labels) // 5)
    learning, selection, train = _cut(pool, seed, sizes.learning // 3, sizes.selection // 3)
    return train, learning, selection, test


def _cut(examples: Examples, seed: int, *counts: int) -> list[Examples]:
    """Parts of so many examples in a random order, and what is left."""
    order: Int[np.ndarray, " n"] = np.random.default_rng(seed).permutation(len(examples.labels))
    return [examples.take(part) for part in np.split(order, np.cumsum(counts))]
