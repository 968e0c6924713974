"""Linear assignment, on the host and inside traced functions, by the value of the objective: optima need not be unique."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.assignment import assign, assign_copies, assign_in_jit


def value(scores, index):
    """What an assignment is worth."""
    assert sorted(np.asarray(index).tolist()) == list(range(len(scores)))
    return float(np.asarray(scores, np.float64)[np.arange(len(scores)), np.asarray(index)].sum())


@pytest.fixture(scope="module")
def traced():
    """Both ways of solving, compiled once a shape."""
    return [jax.jit(lambda s, device=device: assign_in_jit(s, device=device)) for device in (False, True)]


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_the_optimum_equals_brute_force(n, traced):
    for seed in range(3):
        scores = np.random.default_rng(seed).standard_normal((n, n)).astype(np.float32)
        best = max(value(scores, p) for p in map(np.array, itertools.permutations(range(n))))
        for solve in (assign, *traced):
            assert value(scores, solve(scores)) == pytest.approx(best, rel=1e-6)


def test_the_device_finds_what_the_host_finds(traced):
    for seed in range(3):
        scores = np.random.default_rng(seed).standard_normal((24, 24)).astype(np.float32)
        values = [value(scores, solve(scores)) for solve in (assign, *traced)]
        np.testing.assert_allclose(values, values[0], rtol=1e-6)


def test_ties_and_constants_still_give_permutations(traced):
    scores = np.zeros((6, 6), np.float32)
    scores[:3, :3] = 1
    for solve in (assign, *traced):
        assert value(scores, solve(scores)) == 3


@pytest.mark.parametrize("device", [False, True])
def test_copies_are_solved_one_by_one_and_under_vmap(device):
    scores = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    expected = [[value(s, assign(s)) for s in row] for row in scores]
    for solve in (assign_in_jit, lambda s, device: jax.vmap(lambda s: assign_in_jit(s, device=device))(s)):
        index = jax.jit(lambda s, solve=solve: solve(s, device=device))(scores)
        assert index.shape == (2, 3, 4)
        assert index.dtype == jnp.int32
        found = [[value(s, i) for s, i in zip(*pair, strict=True)] for pair in zip(scores, index, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("device", [False, True])
def test_the_scores_get_no_gradient(device):
    """The scores may depend on what is learned: an index has no derivative and must not stop the rest from having one."""

    def loss(x):
        scores = jnp.outer(x, x) + jnp.eye(4)
        return jnp.sum(x[assign_in_jit(scores, device=device)] * jnp.arange(1.0, 5.0))

    x = jnp.array([0.3, -0.2, 0.9, 0.1])
    index = assign(np.outer(x, x) + np.eye(4))
    expected = np.zeros(4)
    np.add.at(expected, index, np.arange(1.0, 5.0))
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(x), expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_on_the_host(bad):
    scores = np.zeros((2, 3, 3), np.float32)
    scores[1, 2, 0] = bad
    with pytest.raises(ValueError, match=r"assignment scores of shape \(3, 3\) hold non-finite values"):
        assign_copies(scores)
    with pytest.raises(Exception, match="hold non-finite values"):
        jax.block_until_ready(jax.jit(assign_in_jit)(scores))
