"""The protocol: which tasks are trained on, which are not, and in which orders networks are merged."""

import itertools
from collections import Counter

import pytest

from experiments.compositional.grid import Cell, Grid, shuffles

PAPER = Grid(tuple(f"category {k}" for k in range(24)), ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"))


@pytest.mark.parametrize("seed", range(3))
def test_the_grid_of_the_paper(seed):
    held_in = PAPER.held_in(seed)
    generalisation = PAPER.generalisation(held_in)
    assert len(PAPER.cells) == 144 and len(held_in) == 24 and len(generalisation) == 120
    assert not set(held_in) & set(generalisation) and set(held_in) | set(generalisation) == set(PAPER.cells)
    assert [cell.category for cell in held_in] == list(range(24))
    assert set(Counter(cell.domain for cell in held_in).values()) == {4}


def test_domains_have_as_many_categories_up_to_one():
    grid = Grid(tuple("abcdefg"), tuple("xyz"))
    for seed in range(20):
        counts = Counter(cell.domain for cell in grid.held_in(seed))
        assert set(counts) == {0, 1, 2} and max(counts.values()) - min(counts.values()) <= 1


def test_held_in_cells_are_drawn_by_the_seed():
    assert PAPER.held_in(3) == PAPER.held_in(3) and len({PAPER.held_in(seed) for seed in range(10)}) == 10


@pytest.mark.parametrize(("models", "count"), [(24, 20), (5, 10), (9, 10), (3, 3)])
def test_orders_are_nested_and_begin_apart(models, count):
    orders = shuffles(models, count)
    assert len(orders) == count and all(sorted(order) == list(range(models)) for order in orders)
    for m in range(2, models):
        assert len({order[:m] for order in orders}) == count
    assert len({frozenset(order[:2]) for order in orders}) == count
    for order in orders:
        assert all(set(order[:a]) < set(order[:b]) for a, b in itertools.pairwise(range(2, models + 1)))
    assert orders == shuffles(models, count) and orders[: count - 1] == shuffles(models, count - 1)


def test_more_orders_than_pairs():
    with pytest.raises(ValueError, match="3 pairs to begin with, asked for 4"):
        shuffles(3, 4)


def test_a_grid_has_two_of_each():
    with pytest.raises(ValueError, match="two domains"):
        Grid(("a", "b"), ("c",))
    assert PAPER.name(Cell(1, 5)) == "category 1, sketch"
