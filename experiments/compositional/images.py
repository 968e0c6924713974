"""Images as a grid: whether an image shows something of a category, in each of several styles."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.compositional.cells import Cells, HeldIn, Part, alone, divided, joined, together
from experiments.compositional.grid import Cell, Grid
from experiments.compositional.settings import Sizes, Task
from experiments.data import DataSet, load
from experiments.data.scaling import from_0_to_1
from experiments.data.types import Part as Stored

DIGITS = {"digits": 4, "mnist": 10}
"""Sets of digits, and how many of them are categories: few in the smallest run."""

DRAWN = 10_000
"""Digits at most, of those for tests and of the others: each is there in all forms."""

SMALL = 16
"""Sides below this are for perceptrons, which take images as vectors."""

DIGIT_DOMAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "upright": lambda x: x,
    "turned": lambda x: np.rot90(x, axes=(1, 2)),
    "inverted": lambda x: 1 - x,
    "shaded": lambda x: np.maximum(x, np.linspace(0.1, 0.6, x.shape[2], dtype=np.float32)[None, None, :, None]),
}


class Pool(NamedTuple):
    """All images of a set, those for tests among them.

    Attributes:
        images: from -1 to 1.
        labels: the category of each.
        domains: the domain of each.
        groups: images of one group show the same thing in different domains, and are never in two parts.
        tested: whether it is for tests.
        categories: their names.
        styles: names of the domains.
        found: what they are, in words.
    """

    images: Float[np.ndarray, "n side side channels"]
    labels: Int[np.ndarray, " n"]
    domains: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]
    tested: Bool[np.ndarray, " n"]
    categories: tuple[str, ...]
    styles: tuple[str, ...]
    found: str

    def take(self, places: np.ndarray) -> "Pool":
        """The images at these places."""
        parts = self.images, self.labels, self.domains, self.groups, self.tested
        return self._replace(**dict(zip(self._fields, (x[places] for x in parts), strict=False)))

    def of_domain(self, name: str) -> "Pool":
        """The images of one domain."""
        return self.take(np.flatnonzero(self.domains == self.styles.index(name)))


class Split(NamedTuple):
    """A pool divided for one seed; the test part is the same for every seed."""

    train: Pool
    learning: Pool
    validation: Pool
    test: Pool


def read_pool(name: str, folder: str = "") -> Pool:
    """PACS, the emoji, or digits in several forms: scikit-learn's or MNIST.

    Raises:
        ValueError: a set that is not found, and where it comes from.
    """
    found = load(name, folder or None)
    return _digits(found, DIGITS[name]) if name in DIGITS else _domains(found)


def split(pool: Pool, sizes: Sizes, seed: int) -> Split:
    """Divide what is not for tests."""
    rest, test = pool.take(np.flatnonzero(~pool.tested)), pool.take(np.flatnonzero(pool.tested))
    learning, validation, train = divided(rest.groups, (sizes.learning, sizes.validation), seed=seed)
    return Split(rest.take(train), rest.take(learning), rest.take(validation), test)


def image_cells(task: Task, pool: Pool, seed: int) -> Cells:
    """A cell's task is to tell images of its category from others in its domain, half of either.

    Args:
        task: whose grid it is.
        pool: the images.
        seed: of the held-in cells and of the division.
    """
    if pool.images.shape[1] < SMALL:
        pool = pool._replace(images=pool.images.reshape(len(pool.images), -1))
    grid = Grid(pool.categories, tuple(name for name in pool.styles if name != task.base_domain))
    parts, domains, limits = split(pool, task.sizes, seed), (*grid.domains, task.base_domain), task.sizes.limits

    def of(part: Pool, cell: Cell, draw: int, most: int) -> Part:
        rng = np.random.default_rng([draw, *cell])
        return detections(part.of_domain(domains[cell.domain]), cell.category, rng).first(most)

    def held_in(cell: Cell) -> HeldIn:
        return HeldIn(*(of(part, cell, seed, most) for part, most in zip(parts[:3], limits, strict=True)))

    test, home = ({cell: of(parts.test, cell, 0, task.sizes.test) for cell in cells} for cells in (grid.cells, grid.home))
    sides = (parts.train, task.sizes.base, 11), (parts.validation, task.sizes.base // 20, 12)
    base, judged = (base_part(part, task.base_domain, most, np.random.default_rng([seed, draw])) for part, most, draw in sides)
    return Cells(grid, {cell: held_in(cell) for cell in grid.held_in(seed)}, test, base, judged, home, pool.found)


def detections(pool: Pool, category: int, rng: np.random.Generator) -> Part:
    """Images of a category and as many others in random order; label 2 k + 1 for those of category k, 2 k for others."""
    mine, others = np.flatnonzero(pool.labels == category), np.flatnonzero(pool.labels != category)
    places = np.concatenate([mine, rng.permutation(others)[: len(mine)]])
    return _part(pool, rng.permutation(places), np.full(len(places), category))


def base_part(pool: Pool, domain: str, most: int, rng: np.random.Generator) -> Part:
    """What the base learns: the categories in its own domain, and of all domains which images belong together; half of either.

    Without the second it would know nothing of the other domains, and experts on a few images there would not learn either.
    """
    own = every_category(pool.of_domain(domain), rng).filled(most // 2)
    return joined([alone(own), pairs(pool, most // 2, rng)])


def pairs(pool: Pool, count: int, rng: np.random.Generator) -> Part:
    """Images and one each of the same group, in another domain: themselves, where they have none."""
    order = np.argsort(pool.groups, kind="stable")
    _, starts, sizes = np.unique(pool.groups[order], return_index=True, return_counts=True)
    places = rng.integers(0, len(order), count)
    mine = np.searchsorted(starts, places, side="right") - 1
    others = starts[mine] + (places - starts[mine] + rng.integers(1, np.maximum(sizes[mine], 2))) % sizes[mine]
    first, second = (pool.images[order[x]].astype(np.float32) for x in (places, others))
    return together(first, second, len(pool.categories), 2 * len(pool.categories))


def every_category(pool: Pool, rng: np.random.Generator) -> Part:
    """Each image twice: asked for its own category, and for another one."""
    count, places = len(pool.categories), np.arange(len(pool.labels))
    other = (pool.labels + rng.integers(1, count, len(places))) % count
    both = joined([_part(pool, places, pool.labels), _part(pool, places, other)])
    order = rng.permutation(len(both))
    return Part({name: x[order] for name, x in both.inputs.items()}, both.targets[order])


def _part(pool: Pool, places: np.ndarray, categories: np.ndarray) -> Part:
    targets = 2 * categories + (pool.labels[places] == categories)
    inputs = {"x": pool.images[places], "category": categories.astype(np.int32)}
    return Part(inputs, targets.astype(np.int32))


def _domains(found: DataSet) -> Pool:
    """PACS and the emoji, in the domains that they are published in."""
    parts: tuple[Stored, Stored] = (found.train, found.test)
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    labels = np.concatenate([part.labels for part in parts])
    images = np.concatenate([from_0_to_1(part.images) for part in parts])
    tested = np.arange(len(labels)) >= len(parts[0].labels)
    groups = columns.get("emoji", np.arange(len(labels)))
    names = parts[0].names
    return Pool(2 * images - 1, labels, columns["domain"], groups, tested, names["label"], names["domain"], found.name)


def _digits(found: DataSet, classes: int) -> Pool:
    """The first few digits, each in all forms."""
    places = [np.flatnonzero(part.labels < classes) for part in (found.train, found.test)]
    places = [x[:: -(-len(x) // DRAWN)] for x in places]  # as files may be in the order of the labels
    parts = [part.take(x) for part, x in zip((found.train, found.test), places, strict=True)]
    images = np.concatenate([from_0_to_1(part.images) for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    count = len(labels)
    tested = np.arange(count) >= len(parts[0].labels)
    forms = np.concatenate([form(images) for form in DIGIT_DOMAINS.values()])
    domains = np.repeat(np.arange(len(DIGIT_DOMAINS)), count)
    again = [np.tile(x, len(DIGIT_DOMAINS)) for x in (labels, np.arange(count), tested)]
    names = tuple(str(k) for k in range(classes)), tuple(DIGIT_DOMAINS)
    return Pool(2 * forms - 1, again[0], domains, again[1], again[2], *names, found.name)
