"""Who learns from which images: the divisions among models of published experiments, and the few labels of a merge."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int

from alignment.checks import check_count, unknown

Labels = Int[np.ndarray, " n"]
Index = Int[np.ndarray, " k"]


def same(labels: Labels, models: int, *, seed: int) -> list[Index]:
    """All images for every model."""
    return [np.arange(len(labels)) for _ in range(models)]


def eighty_twenty(labels: Labels, models: int, *, seed: int) -> list[Index]:
    """20 % of the images of the first half of the classes and 80 % of the others for model 0, the rest for model 1.

    For more models the classes are divided into as many groups, the last for model 0 and the first for the last model: a model
    has 80 % of the images of each class in its group, and the other models share the remaining 20 % evenly. With two models
    that is the split of Git Re-Basin (Ainsworth et al. 2023), which CCA Merge and NP Merge took over.

    Args:
        labels: of the images to divide.
        models: 2 or more.
        seed: of which images of a class go where.

    Raises:
        ValueError: more models than classes.
    """
    owner = np.empty(labels.max() + 1, np.int64)
    for model, group in enumerate(reversed(_class_groups(np.arange(len(owner)), models))):
        owner[group] = model
    rng = np.random.default_rng(seed)
    parts: list[list[Index]] = [[] for _ in range(models)]
    for label, mine in enumerate(owner):
        most, rest = np.split(places := _shuffled(labels, label, rng), [round(0.8 * len(places))])
        parts[mine].append(most)
        others = [m for m in range(models) if m != mine]
        for model, part in zip(others, np.array_split(rest, len(others)), strict=True):
            parts[model].append(part)
    return _joined(parts)


def dirichlet(labels: Labels, models: int, *, seed: int, concentration: float = 0.5) -> list[Index]:
    """Each class divided by shares that are drawn from Dirichlet(concentration): the unbalanced split of CCA Merge.

    Args:
        labels: of the images to divide.
        models: 2 or more.
        seed: of the shares, and of which images go where.
        concentration: the smaller, the more uneven.
    """
    rng = np.random.default_rng(seed)
    parts: list[list[Index]] = [[] for _ in range(models)]
    for label in range(labels.max() + 1):
        places, shares = _shuffled(labels, label, rng), rng.dirichlet(np.full(models, concentration))
        cuts = np.round(np.cumsum(shares)[:-1] * len(places)).astype(np.int64)
        for mine, part in zip(parts, np.split(places, cuts), strict=True):
            mine.append(part)
    return _joined(parts)


def disjoint(labels: Labels, models: int, *, seed: int) -> list[Index]:
    """All images of some classes each, no class twice: the classes are shuffled and divided as evenly as they can be.

    Raises:
        ValueError: more models than classes.
    """
    groups = _class_groups(np.random.default_rng(seed).permutation(labels.max() + 1), models)
    return [np.flatnonzero(np.isin(labels, group)) for group in groups]


SPLITS: dict[str, Callable[..., list[Index]]] = {
    "same": same,
    "80-20": eighty_twenty,
    "dirichlet": dirichlet,
    "disjoint": disjoint,
}
"""By the names that settings give them."""


def split(name: str, labels: Labels, models: int, *, seed: int) -> list[Index]:
    """Which images each model learns from.

    Args:
        name: one of SPLITS.
        labels: (n,) of the training images, from 0.
        models: how many.
        seed: another one is another division.

    Returns:
        For each model its places among the images, ascending; those of two models have none in common, `same` aside.

    Raises:
        ValueError: an unknown name, fewer than two models, more models than classes where each needs one.
    """
    if name not in SPLITS:
        raise ValueError(unknown("split", name, SPLITS))
    check_count("the models of a split", models, 2)
    return SPLITS[name](labels, models, seed=seed)


def labelled(labels: Labels, count: int, *, seed: int) -> Index:
    """Places of a few images, stratified by class and nested: those for a smaller count are the first of a larger one.

    Every class has its share of them, up to one image.

    Args:
        labels: of the images to draw from.
        count: how many.
        seed: of the draw.

    Raises:
        ValueError: a count below 1 or above the number of images.
    """
    if not 1 <= count <= len(labels):
        raise ValueError(f"labelled images: got {count}, expected 1 to {len(labels)}")
    rng, turn = np.random.default_rng(seed), np.empty(len(labels))
    for label in np.unique(labels):
        places = _shuffled(labels, label, rng)
        turn[places] = (np.arange(len(places)) + 0.5) / len(places)  # evenly spaced: every class is used up at one pace
    return np.lexsort((rng.random(len(labels)), turn))[:count]


def is_fifth(strata: Labels, *, seed: int = 0) -> Bool[np.ndarray, " n"]:
    """A fifth of each stratum, drawn: which examples are for testing where no split was published."""
    rng, chosen = np.random.default_rng(seed), np.zeros(len(strata), np.bool_)
    for stratum in np.unique(strata):
        places = _shuffled(strata, stratum, rng)
        chosen[places[: round(len(places) / 5)]] = True
    return chosen


def _shuffled(labels: Labels, label: int, rng: np.random.Generator) -> Index:
    return rng.permutation(np.flatnonzero(labels == label))


def _class_groups(classes: Index, models: int) -> list[Index]:
    if models > len(classes):
        raise ValueError(f"got {models} models and {len(classes)} classes, expected a class for each model")
    return np.array_split(classes, models)


def _joined(parts: list[list[Index]]) -> list[Index]:
    return [np.sort(np.concatenate(part)) for part in parts]
