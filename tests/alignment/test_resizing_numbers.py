"""Numbers that code derives from widths: they follow, or a warning names them; the oracle is the same code at the new width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import resize, trace

IN, OUT = 3, 2
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((6, IN)), jnp.float32)


def variables(n):
    shapes = {"up": (IN, n), "down": (n, OUT)}
    return {name: jnp.asarray(RNG.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}


def scaled(h, c):
    return h * jnp.float32(c)


def norm(h):
    return jnp.sqrt(jnp.square(h).sum(-1, keepdims=True) + 1e-6)


def like(x, h):
    return jnp.broadcast_to(x, h.shape)


def softmax(h):
    return jax.nn.softmax(h, -1)


FOLLOW = {  # features h of n units -> features, or one number
    "mean": lambda h, n: h.sum(-1, keepdims=True) / n,
    "mean_by_factor": lambda h, n: h.sum(-1, keepdims=True) * (1 / n),
    "mean_of_scaled": lambda h, n: scaled(h, 1 / n).sum(-1, keepdims=True),
    "mean_by_dot": lambda h, n: h @ jnp.full((n, 1), 1 / n),
    "mean_by_ones": lambda h, n: h @ jnp.ones((n, 1)) / n,
    "mean_by_array": lambda h, n: (h @ (jnp.ones(n) / n))[:, None],
    "mean_of_two_axes": lambda h, n: like((h.sum(-1).sum(0) / (len(X) * n)).reshape(1, 1), h[:, :1]),
    "mean_of_two_axes_at_once": lambda h, n: like((h.sum((0, 1)) / (len(X) * n)).reshape(1, 1), h[:, :1]),
    "numpy_average": lambda h, n: jnp.average(h, -1, weights=jnp.ones(n))[:, None],
    "unbiased": lambda h, n: jnp.var(h, -1, ddof=1)[:, None],
    "unbiased_by_hand": lambda h, n: jnp.square(h - like(h.mean(-1, keepdims=True), h)).sum(-1, keepdims=True) / (n - 1),
    "standard_deviation": lambda h, n: jnp.std(h, -1, keepdims=True, ddof=1),
    "standard_error": lambda h, n: norm(h - like(h.mean(-1, keepdims=True), h)) / (n - 1) ** 0.5,
    "root_mean_square": lambda h, n: norm(h) / n**0.5,
    "rms_norm": lambda h, n: scaled(h / like(norm(h), h), n**0.5),
    "rms_norm_by_rsqrt": lambda h, n: scaled(h * like(jax.lax.rsqrt(jnp.square(h).sum(-1, keepdims=True)), h), n**0.5),
    "rms_norm_in_the_program": lambda h, n: h / like(jnp.linalg.norm(h, axis=-1, keepdims=True), h) * jnp.sqrt(jnp.float32(n)),
    "entropy": lambda h, n: -(softmax(h) * jnp.log(softmax(h))).sum(-1, keepdims=True) / np.log(n),
    "log_mean_exp": lambda h, n: jax.nn.logsumexp(h, -1, keepdims=True) - jnp.log(jnp.float32(n)),
    "softmax_of_mean_one": lambda h, n: softmax(h) * n,
    "harmonic_mean": lambda h, n: n / (1 / (jnp.abs(h) + 1)).sum(-1, keepdims=True),
    "gram": lambda h, n: (jnp.einsum("bi,bi->b", h, h) / n)[:, None],
}
ROOT = {  # as long as the root of n is no whole number
    "norm_times_root": lambda h, n: scaled(norm(h), n**0.5),
    "sum_over_root": lambda h, n: h.sum(-1, keepdims=True) / n**0.5,
    "dot_with_roots": lambda h, n: h @ jnp.full((n, 1), n**-0.5),
}
WARNED = {
    "embedding": lambda h, n: scaled(h, n**0.5),
    "over_root": lambda h, n: h / n**0.5,
    "root_in_the_program": lambda h, n: h / jnp.sqrt(n),
    "over_logarithm": lambda h, n: h / np.log(n),
    "sum_less_n": lambda h, n: h.sum(-1, keepdims=True) - n,
    "mean_times_n": lambda h, n: h.mean(-1, keepdims=True) * n,
}


def network(form, n):
    def apply(v, x):
        h = jnp.tanh(x @ v["up"])
        y = form(h, n)
        return (like(y, h) + h) @ v["down"]

    return apply


def compared(make, old, new):
    """What the resized network computes, and the same code at the new width."""
    small, wide = (variables(n) for n in (old, new))
    apply = make(old)
    return resize(apply, trace(apply, small, X), wide)(wide, X), make(new)(wide, X)


@pytest.mark.parametrize("old", [4, 5])
@pytest.mark.parametrize("name", FOLLOW)
def test_numbers_that_undo_a_sum_follow(name, old):
    got, expected = compared(lambda n: network(FOLLOW[name], n), old, 11)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ROOT)
def test_roots_that_look_like_nothing_else_follow(name):
    got, expected = compared(lambda n: network(ROOT[name], n), 5, 11)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "old"), [*((n, 4) for n in ROOT), *((n, 5) for n in WARNED), *((n, 4) for n in WARNED)])
def test_numbers_that_may_mean_anything_stay_and_are_named(name, old):
    form = (ROOT | WARNED)[name]
    line = r"alignment/test_resizing_numbers.py:\d+ \(.*\)"
    with pytest.warns(
        UserWarning, match=rf"the number \S+ at {line} equals .*, and 'up' now has 11 units instead of {old} there"
    ):
        got, native = compared(lambda n: network(form, n), old, 11)
    assert not np.allclose(got, native, rtol=1e-2)  # else there was nothing to warn of
