"""The Sinkhorn operator and its implicit derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.assignment import assign
from alignment.sinkhorn import sinkhorn

N = 5


def logits(seed, *shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape or (N, N)), jnp.float32)


def by_hand(x, iterations):
    """Columns, then rows divided by their sums, in float64."""
    s = np.exp(np.asarray(x, np.float64))
    for _ in range(iterations):
        s = s / s.sum(0)
        s = s / s.sum(1, keepdims=True)
    return s


def unrolled(x, iterations):
    """The same in the log domain, for JAX to differentiate through."""

    def both(x, _):
        x = x - jax.nn.logsumexp(x, axis=0, keepdims=True)
        return x - jax.nn.logsumexp(x, axis=1, keepdims=True), None

    return jnp.exp(jax.lax.scan(both, x, length=iterations)[0])


@pytest.mark.parametrize("iterations", [1, 2, 30])
def test_columns_and_rows_are_normalised_in_turn(iterations):
    np.testing.assert_allclose(sinkhorn(logits(0), iterations=iterations), by_hand(logits(0), iterations), rtol=1e-5)


def test_rows_and_columns_sum_to_one():
    for scale in (0.1, 1, 30, 1000):  # exp(1000) is not a number: the log domain
        s = np.asarray(sinkhorn(logits(1, scale=scale)))
        assert s.min() >= 0
        np.testing.assert_allclose(s.sum(1), 1, rtol=2e-7)
    np.testing.assert_allclose(sinkhorn(logits(1)).sum(0), 1, rtol=1e-6)
    assert np.abs(sinkhorn(logits(1), iterations=1).sum(0) - 1).max() > 1e-3


def test_equal_logits_share_equally():
    np.testing.assert_allclose(sinkhorn(jnp.full((N, N), 3.0)), 1 / N, rtol=1e-6)
    np.testing.assert_array_equal(sinkhorn(jnp.zeros((1, 1))), 1)


def test_what_rows_and_columns_have_in_common_does_not_matter():
    shifted = logits(2) + logits(3, N)[:, None] + logits(4, N)[None]
    np.testing.assert_allclose(sinkhorn(shifted), sinkhorn(logits(2)), atol=1e-6)


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradient(operator, x, weights, iterations):
    """Of <weights, operator(x)>."""
    return jax.grad(lambda x: (weights * operator(x, iterations=iterations)).sum())(x)


@pytest.mark.parametrize("seed", [2, 4, 5])
def test_a_low_temperature_gives_the_assignment(seed):
    x = logits(seed)
    assert len(set(np.asarray(x).argmax(1).tolist())) < N  # each row's own best place would not do
    s = sinkhorn(x / 0.02, iterations=3000)
    np.testing.assert_allclose(s, np.eye(N)[assign(np.asarray(x))], atol=1e-2)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_derivative_three_ways(scale):
    """Of the fixed point, through the iterations, and by central differences, in float64."""
    with jax.enable_x64(True):
        x, weights, direction = (jnp.asarray(np.random.default_rng(k).standard_normal((N, N))) for k in (5, 6, 7))
        implicit, through = (gradient(operator, scale * x, weights, 300) for operator in (sinkhorn, unrolled))
        ahead, behind = (sinkhorn(scale * x + h * direction, iterations=300) for h in (1e-6, -1e-6))
        assert float(jnp.abs(through).max()) > 1e-2
        np.testing.assert_allclose(implicit, through, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose((implicit * direction).sum(), (weights * (ahead - behind)).sum() / 2e-6, rtol=1e-7)


def by_least_squares(s, weights):
    """The derivative for a plan s and its cotangent, from all 2n equations in float64."""
    sums = np.concatenate([(s * weights).sum(1), (s * weights).sum(0)])
    system = np.block([[np.diag(s.sum(1)), s], [s.T, np.diag(s.sum(0))]])
    potentials = np.linalg.lstsq(system, -sums, rcond=1e-13)[0]
    return s * (weights + potentials[:N, None] + potentials[None, N:])


@pytest.mark.parametrize("certainty", [0, 3, 8, 12])
def test_the_derivative_of_nearly_hard_plans_is_exact_in_float32(certainty):
    """With 1e-5 off the chosen places the system is a difference of nearly equal numbers, and must not be taken so."""
    chosen = np.eye(N)[[2, 0, 1, 4, 3]]
    x = np.asarray(certainty * chosen + 0.5 * np.random.default_rng(8).standard_normal((N, N)), np.float32)
    weights = np.random.default_rng(9).standard_normal((N, N))
    expected = by_least_squares(by_hand(x, 30), weights)
    implicit = gradient(sinkhorn, jnp.asarray(x), jnp.asarray(weights, jnp.float32), 30)
    np.testing.assert_allclose(implicit, expected, atol=5e-5 * np.abs(expected).max())


@pytest.mark.parametrize("scale", [30.0, 100.0, 1e3, 1e6])
def test_the_derivative_of_hard_plans_is_finite(scale):
    for x in (logits(10, scale=scale), scale * jnp.eye(N), scale * jnp.eye(N).at[1, 2].set(1.0)):
        assert bool(jnp.isfinite(gradient(sinkhorn, x, logits(11), 30)).all())
    np.testing.assert_array_equal(gradient(sinkhorn, 1e3 * jnp.eye(N), logits(11), 30), 0)


def test_the_derivative_of_two_units_is_finite_however_it_is_rounded():
    """Two rows that differ in nothing but rounding: that must not make the system indefinite."""
    x = logits(18, 5000, 2, 2, scale=10)
    assert bool(jnp.isfinite(gradient(sinkhorn, x, logits(19, *x.shape), 30)).all())


def test_the_derivative_sums_to_zero_over_rows_and_columns():
    """Of eight parts that hardly touch: the system is nearly singular eightfold."""
    x = jnp.log(jnp.kron(jnp.eye(8), jnp.ones((8, 8))) + 1e-4) + logits(16, 64, 64, scale=0.3)
    slope = gradient(sinkhorn, x, logits(17, 64, 64), 30)
    assert float(jnp.abs(slope).max()) > 0.1
    assert max(float(jnp.abs(slope.sum(axis)).max()) for axis in (0, 1)) < 1e-6


def test_places_may_be_forbidden():
    x = logits(12).at[0, 1].set(-jnp.inf)
    s, slope = sinkhorn(x), gradient(sinkhorn, x, logits(13), 30)
    assert float(s[0, 1]) == 0 and float(slope[0, 1]) == 0
    np.testing.assert_allclose(s.sum(0), 1, atol=1e-4)
    assert bool(jnp.isfinite(slope).all()) and bool((slope != 0).any())


def test_copies_are_independent_under_every_transformation():
    x, weights = logits(14, 2, 3, N, N), logits(15, 2, 3, N, N)
    together = gradient(sinkhorn, x, weights, 30)
    mapped = jax.vmap(jax.vmap(lambda x, w: gradient(sinkhorn, x, w, 30)))(x, weights)
    np.testing.assert_allclose(mapped, together, atol=1e-6)
    for copy in np.ndindex(2, 3):
        np.testing.assert_allclose(together[copy], gradient(sinkhorn, x[copy], weights[copy], 30), atol=1e-6)


def test_the_cost_of_the_derivative_does_not_grow_with_the_iterations():
    """Nothing is kept of them: only the length of one loop differs."""
    few, many = (str(jax.make_jaxpr(jax.grad(lambda x, i=i: sinkhorn(x, iterations=i)[0, 0]))(logits(0))) for i in (8, 3000))
    assert "length=2999" in many
    assert many.replace("length=2999", "length=7").replace("nondiff_argnums", "") == few.replace("nondiff_argnums", "")


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="iterations must be an integer of 1 or more, got 0"):
        sinkhorn(logits(0), iterations=0)
    with pytest.raises(ValueError, match=r"\(\*copies, n, n\), got shape \(3, 4\)"):
        sinkhorn(jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match="without NaN, got 2 of 25"):
        sinkhorn(logits(0).at[1, :2].set(jnp.nan))
    with pytest.raises(ValueError, match=r"no \+inf: got 1 of 25"):
        sinkhorn(logits(0).at[1, 2].set(jnp.inf))
    copies = logits(0, 2, N, N)
    with pytest.raises(ValueError, match=r"all of row \[1, 3\] is -inf"):
        sinkhorn(copies.at[1, 3].set(-jnp.inf))
    with pytest.raises(ValueError, match=r"all of column \[0, 2\] is -inf"):
        sinkhorn(copies.at[0, :, 2].set(-jnp.inf))
