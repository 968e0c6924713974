"""The protocol of Tam et al. 2024: tasks are cells (category, domain), one of each category is trained on and merged.

Realistic Evaluation of Model Merging for Compositional Generalization, arXiv 2409.18314: 24 categories and 6 domains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from alignment.checks import check_count


class Cell(NamedTuple):
    """A task: a category in a domain, both by their place in the grid."""

    category: int
    domain: int


@dataclass(frozen=True)
class Grid:
    """All tasks.

    Attributes:
        categories: their names.
        domains: their names.

    Raises:
        ValueError: fewer than two of either.
    """

    categories: tuple[str, ...]
    domains: tuple[str, ...]

    def __post_init__(self) -> None:
        if min(len(self.categories), len(self.domains)) < 2:
            raise ValueError(f"a grid takes two categories and two domains at least, got {self}")

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every category in every domain, category by category."""
        return tuple(Cell(k, d) for k in range(len(self.categories)) for d in range(len(self.domains)))

    @property
    def home(self) -> tuple[Cell, ...]:
        """Every category in the domain of the base, whose place is behind those of the grid."""
        return tuple(Cell(k, len(self.domains)) for k in range(len(self.categories)))

    def held_in(self, seed: int) -> tuple[Cell, ...]:
        """One cell of each category, in their order: those that networks are fine-tuned on.

        Every domain has as many categories as any other, up to one; which of them is drawn.

        Args:
            seed: of the draw.
        """
        rng = np.random.default_rng([seed, 18314])
        count = len(self.domains)
        turns = [rng.permutation(count) for _ in range(-(-len(self.categories) // count))]
        domains = np.concatenate(turns)[: len(self.categories)]
        return tuple(Cell(k, int(d)) for k, d in enumerate(rng.permutation(domains)))

    def generalisation(self, held_in: Sequence[Cell]) -> tuple[Cell, ...]:
        """All other cells: no network is trained on them, and nothing is chosen by them."""
        return tuple(cell for cell in self.cells if cell not in held_in)

    def name(self, cell: Cell) -> str:
        """A cell, in words."""
        return f"{self.categories[cell.category]}, {self.domains[cell.domain]}"


def shuffles(models: int, count: int, *, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Orders of the models: the first m of an order are a subset of m, so that the subsets of an order are nested.

    No two orders begin with the same two models, whichever of them comes first: so no two begin alike, which is what the
    published program asks for, and no pair is merged twice.

    Args:
        models: how many there are.
        count: how many orders; the paper takes 20 of 24 models, 10 of 5.
        seed: of the draws.

    Raises:
        ValueError: more orders than there are pairs to begin with.
    """
    check_count("count", count)
    pairs = models * (models - 1) // 2
    if count > pairs:
        raise ValueError(f"{models} models have {pairs} pairs to begin with, asked for {count} orders")
    rng = np.random.default_rng(seed)
    found: dict[frozenset[int], tuple[int, ...]] = {}
    while len(found) < count:
        order = tuple(map(int, rng.permutation(models)))
        found.setdefault(frozenset(order[:2]), order)
    return tuple(found.values())
