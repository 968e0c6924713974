"""Examples of the cells of a grid: for learning and for choices those of held-in cells alone, for tests those of all."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from alignment.graph import PyTree
from experiments.compositional.grid import Cell, Grid


class Part(NamedTuple):
    """Examples of one cell.

    Attributes:
        inputs: what a network reads, a tree of arrays (n, ...).
        targets: labels, or what else it is to make.
    """

    inputs: PyTree
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def first(self, count: int) -> "Part":
        """The first examples."""
        return Part(*jax.tree.map(lambda x: x[:count], tuple(self)))

    def filled(self, count: int) -> "Part":
        """So many examples, from the first on again where there are fewer."""
        return Part(*jax.tree.map(lambda x: x[np.arange(count) % len(self)], tuple(self)))


class HeldIn(NamedTuple):
    """The parts of a cell that a network is fine-tuned on: without a common example."""

    train: Part
    learning: Part  # for statistics, and for learning from a merge
    validation: Part  # for every choice


class Cells(NamedTuple):
    """The data of one seed.

    Attributes:
        grid: its names.
        held_in: cells that networks are fine-tuned on, in the order of the networks, and their parts.
        test: of every cell, the same for every seed.
        base: what the base learns from: every category in a domain that is none of the grid's, and what belongs together in
            all domains. Its inputs have a "partner" besides.
        base_validation: what its moment is chosen by.
        home: for tests, too, every category in the base's own domain.
        found: what the data are, in words.
    """

    grid: Grid
    held_in: Mapping[Cell, HeldIn]
    test: Mapping[Cell, Part]
    base: Part
    base_validation: Part
    home: Mapping[Cell, Part]
    found: str


def joined(parts: Sequence[Part]) -> Part:
    """The examples of all."""
    return Part(*jax.tree.map(lambda *x: np.concatenate(x), *map(tuple, parts)))


def together(first: PyTree, second: PyTree, category: int, target: int) -> Part:
    """Pairs of what belongs together, asked for as a category behind those of the grid, whose first output is `target`."""
    count = len(first)
    inputs = {"x": first, "category": np.full(count, category, np.int32), "partner": second}
    return Part(inputs, np.full(count, target, np.int32))


def alone(part: Part) -> Part:
    """Examples with themselves for partners, which are not looked at."""
    return Part({**part.inputs, "partner": part.inputs["x"]}, part.targets)


def divided(groups: Int[np.ndarray, " n"], shares: Sequence[float], *, seed: int) -> list[Int[np.ndarray, " k"]]:
    """Places of the examples, in as many parts as there are shares and one more for the rest: no group is in two parts.

    Args:
        groups: of each example, such as one drawing in several styles, one sentence in several languages.
        shares: of the groups.
        seed: of the draw.
    """
    different = np.random.default_rng([seed, 7]).permutation(np.unique(groups))
    ends = np.cumsum([round(share * len(different)) for share in shares])
    return [np.flatnonzero(np.isin(groups, part)) for part in np.split(different, ends)]
