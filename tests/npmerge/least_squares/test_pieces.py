"""What sites should make is found once for as many of them as memory holds, and is the same for any memory."""

import chex
import numpy as np
import pytest

from npmerge.least_squares import pieces
from tests.npmerge.least_squares.test_solve import BATCHES, partial_maps, solve

EXAMPLES = 5 * BATCHES
"""480 of them: what the three sites should make takes 4 * 480 bytes for each of 11, 11 and 4 units."""


@pytest.fixture(scope="module")
def whole():
    return solve(partial_maps(), batches=EXAMPLES, sequential=True)


@pytest.mark.parametrize(("memory_limit", "runs"), [(1e9, [3]), (45_000, [2, 1]), (15_000, [1])])
def test_parents_are_run_once_for_what_memory_holds(memory_limit, runs, whole, monkeypatch):
    seen = []
    original = pieces._wanted
    monkeypatch.setattr(pieces, "_wanted", lambda *given: seen.append(given[1]) or original(*given))
    found = solve(partial_maps(), batches=EXAMPLES, sequential=True, memory_limit=memory_limit)
    assert [len(names) for names in dict.fromkeys(seen)] == runs  # the last one alone holds only the smallest site
    chex.assert_trees_all_close(found.variables, whole.variables, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(found.after, whole.after, rtol=1e-3, atol=1e-5)


def test_what_is_kept_is_what_is_asked_for(monkeypatch):
    """A site asked for out of its turn has its own targets, whatever is kept."""
    made = []
    original = pieces.Pieces

    class Seen(original):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr("npmerge.least_squares.solve.Pieces", Seen)
    merged = solve(partial_maps(), batches=EXAMPLES, sequential=True, memory_limit=45_000).variables
    (found,) = made
    networks = found.networks._replace(merged=merged)
    for name in reversed(found.names):
        for piece in found.of(name):
            expected = found.targets.wanted((name,), found.networks, piece.inputs)
            chex.assert_trees_all_close(dict(piece.wanted), expected, rtol=1e-5, atol=1e-5)
            none = {name: np.zeros_like(piece.wanted[name])}  # what is known is not made anew
            assert not found.targets.pairs((name,), networks, piece.inputs, none)[name].outputs.any()
