"""Adam whose rate is in its state: as Optax has it, compiled once for all rates."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import npmerge as nm
from experiments.learning import Budget, adam, beyond, lowest, search

BATCHES = [(jnp.ones((2, 1)), jnp.array([1.0, 3.0]))]
TRACED: list[int] = []


def loss(theta, stack, batch):
    TRACED.append(1)
    return jnp.square(theta["w"] - batch[1]).mean()


def test_it_is_adam_along_a_cosine_and_is_compiled_once():
    theta = {"w": jnp.array([0.0, 5.0])}
    for rate, steps in ((0.1, 7), (0.3, 4)):
        ours, theirs = (
            nm.fit(theta, loss, None, BATCHES, o, steps=7).theta["w"]
            for o in (adam(rate, steps), optax.adam(optax.cosine_decay_schedule(rate, steps)))
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    TRACED.clear()
    nm.fit(theta, loss, None, BATCHES, adam(0.7, 11), steps=3)
    assert not TRACED


@pytest.mark.parametrize(
    ("rates", "best", "expected"),
    [
        ((0.01, 0.03, 0.1), 0.03, None),
        ((0.01, 0.03, 0.1), 0.01, 0.00333),
        ((0.01, 0.03, 0.1), 0.1, 0.333),
        ((0.01,), 0.01, None),
    ],
)
def test_the_rate_beyond_a_grid(rates, best, expected):
    assert beyond(rates, best) == expected


@pytest.mark.parametrize(("further", "chosen"), [(0, 0.04), (1, 0.08), (2, 0.16), (5, 0.32)])
def test_a_grid_goes_on_where_its_best_rate_is_an_end(further, chosen):
    """Four steps along a cosine are 2.5 times as long as its rate, which is to be 0.8."""
    batch = (jnp.ones(1), jnp.array([0.8]))
    tuned = functools.partial(Budget(4, 1, further).tuned, {"w": jnp.array(0.0)}, absolute, None)
    assert tuned(batches=lambda: [batch], held_out=[batch], rates=(0.02, 0.04)).rate == chosen


def absolute(theta, stack, batch):
    return jnp.abs(theta["w"] - batch[1]).mean()


@pytest.mark.parametrize(
    ("losses", "further", "tried", "rate"),
    [
        ({0.1: 3, 0.2: 2, 0.4: 1, 0.8: 2}, 2, [0.1, 0.2, 0.4, 0.8], 0.4),
        ({0.1: 1, 0.2: 2, 0.4: 3, 0.05: 0, 0.025: 1}, 2, [0.025, 0.05, 0.1, 0.2, 0.4], 0.05),
        (
            {0.1: 1, 0.2: 1, 0.4: 1, 0.05: 0},
            1,
            [0.1, 0.2, 0.4],
            0.1,
        ),  # of equal ones the lowest, and nothing says where to go on
        ({0.1: 1, 0.2: 1, 0.4: 2, 0.05: 1}, 1, [0.05, 0.1, 0.2, 0.4], 0.05),
        ({0.1: math.nan, 0.2: 5, 0.4: math.inf}, 2, [0.1, 0.2, 0.4], 0.2),
        ({0.1: 2, 0.2: math.nan, 0.4: 1, 0.8: math.nan}, 2, [0.1, 0.2, 0.4, 0.8], 0.4),
        ({0.1: 2, 0.2: 3, 0.4: 1}, 0, [0.1, 0.2, 0.4], 0.4),
    ],
)
def test_a_search_goes_on_beyond_its_grid(losses, further, tried, rate):
    found = search((0.1, 0.2, 0.4), losses.get, float, further)
    assert list(found.found) == tried
    assert found.rate == rate and found.best == losses[rate]


def test_a_search_in_which_all_diverge_is_an_error():
    with pytest.raises(ValueError, match=r"no rate of 0.1, 0.2 has a finite loss"):
        search((0.1, 0.2), lambda rate: math.nan, float, 2)


def test_moments_that_are_not_finite_do_not_count():
    assert lowest(np.array([3.0, math.nan, 1.0, math.inf])) == 1
    assert lowest(np.array([math.nan])) == math.inf
