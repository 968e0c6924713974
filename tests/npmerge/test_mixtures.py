"""The gradient written out for the simplex, beside that of the softmax and sigmoid themselves in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npmerge import Box, Simplex
from npmerge.constraints import Constraint
from npmerge.mixtures import on_simplex
from tests.npmerge.toys import array, normal

SHAPES = {"parameter": (4, 5), "tensor": (1, 1), "input": (4, 1), "channel": (1, 5)}


def rows_of(n):
    return 1 if n == 2 else n


def softmax64(latent):
    if len(latent) == 1:
        c = 1 / (1 + np.exp(-latent))
        return np.concatenate([c, 1 - c])
    e = np.exp(latent - latent.max(0))
    return e / e.sum(0)


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(mixed, along, *given):
    """The mixture and its gradients along a direction, compiled in one piece."""
    value, back = jax.vjp(mixed, *given)
    return value, *back(along)


@pytest.mark.parametrize("n", [2, 3, 32])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_value_and_gradients_in_float64(n, shape):
    latent, models, along = 2 * normal(1, rows_of(n), *shape), normal(2, n, 4, 5), normal(3, 4, 5)
    c = softmax64(latent)
    merged = (c * models).sum(0)
    by_row = (c * (models - merged) * along)[: len(latent)]
    shared = tuple(k for k in (1, 2) if shape[k - 1] == 1)
    args = [x.astype(np.float32) for x in (latent, models)]
    value, of_latent, of_models = with_gradients(Simplex().mixed, along.astype(np.float32), *args)
    np.testing.assert_allclose(value, merged, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_latent, by_row.sum(shared, keepdims=True), rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(of_models, np.broadcast_to(c * along, models.shape), rtol=1e-5, atol=1e-6)
    plain = jax.jit(functools.partial(Constraint.mixed, Simplex()))(*args)
    chex.assert_trees_all_close(value, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("shape", [(4, 5), (1, 1)])
def test_equal_models_have_no_gradient(n, shape):
    models = jnp.broadcast_to(array(1, 4, 5), (n, 4, 5))
    latent = array(2, rows_of(n), *shape)
    value, of_latent, _ = with_gradients(on_simplex, array(3, 4, 5), latent, models)
    chex.assert_trees_all_close(value, models[0], rtol=1e-6)
    largest = np.abs(of_latent).max()
    assert largest == 0 if n == 2 else largest < 1e-6


@pytest.mark.parametrize("n", [2, 3])
def test_saturated_latents_choose_a_model_and_stay_finite(n):
    models = array(1, n, 4, 5)
    latent = jnp.full((rows_of(n), 4, 5), -1e4).at[0].set(1e4)
    value, *gradients = with_gradients(on_simplex, np.ones((4, 5), np.float32), latent, models)
    chex.assert_trees_all_close(value, models[0], rtol=1e-6)
    chex.assert_tree_all_finite(gradients)


def test_low_precision_is_widened():
    models, latent = array(1, 3, 4, 5).astype(jnp.bfloat16), array(2, 3, 4, 5)
    value, of_latent, of_models = with_gradients(on_simplex, np.ones((4, 5), np.float32), latent, models)
    assert value.dtype == jnp.float32
    exact = (softmax64(np.asarray(latent, np.float64)) * np.asarray(models, np.float64)).sum(0)
    np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-5)
    assert (of_latent.dtype, of_models.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize("n", [2, 3])
def test_second_derivatives(n):
    """Reverse over reverse, beside the same of the softmax."""
    models, latent = array(1, n, 2, 3), array(2, rows_of(n), 2, 3)

    def slope(mixed):
        first = jax.grad(lambda x: jnp.sum(jnp.sin(mixed(x, models))))
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(first(x)))))(latent)

    plain = slope(lambda *args: Constraint.mixed(Simplex(), *args))
    chex.assert_trees_all_close(slope(on_simplex), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [2, 8])
def test_no_coefficients_are_kept(n):
    """One matrix and its gradient in a chain of three, whatever the number of models."""
    latents, stacks = [jnp.zeros((rows_of(n), 128, 128))] * 3, [jnp.ones((n, 128, 128))] * 3

    def loss(latents, stacks, mixed):
        x = jnp.ones((1, 128))
        for latent, models in zip(latents, stacks, strict=True):
            x = jnp.tanh(x @ mixed(latent, models))
        return x.sum()

    def temporaries(mixed):
        step = jax.jit(jax.grad(functools.partial(loss, mixed=mixed)))
        return step.lower(latents, stacks).compile().memory_analysis().temp_size_in_bytes / (3 * 128 * 128 * 4)

    assert temporaries(on_simplex) < 2 <= n < temporaries(functools.partial(Constraint.mixed, Simplex()))


def test_other_constraints_are_sums():
    latent, models = array(1, 3, 1, 5), array(2, 3, 4, 5)
    expected = (np.asarray(Box().forward(latent)) * np.asarray(models)).sum(0)
    np.testing.assert_allclose(Box().mixed(latent, models), expected, rtol=1e-5, atol=1e-6)
