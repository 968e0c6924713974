import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npmerge import Box, Free, Simplex
from tests.npmerge.toys import normal

BOX = Box(-0.5, 2.0)


def points(n: int, constraint) -> np.ndarray:
    """Coefficients inside a constraint, (n, 4)."""
    x = normal(n, n, 4)
    if isinstance(constraint, Simplex):
        return np.exp(x) / np.exp(x).sum(0)
    return constraint.low + (constraint.high - constraint.low) / (1 + np.exp(-x)) if isinstance(constraint, Box) else 10 * x


@pytest.mark.parametrize("constraint", [Free(), Box(), BOX, Simplex()], ids=str)
@pytest.mark.parametrize("n", [2, 3])
def test_forward_undoes_inverse(constraint, n):
    c = points(n, constraint).astype(np.float32)
    constraint.check(c)
    forward, inverse = jax.jit(constraint.forward), jax.jit(constraint.inverse)
    latent = inverse(c)
    chex.assert_trees_all_close(forward(latent), c, rtol=1e-6, atol=1e-6)
    again = inverse(forward(latent))
    chex.assert_trees_all_close(again, latent, rtol=1e-5, atol=1e-5)


def test_forward_against_numpy():
    x = normal(0, 3, 4).astype(np.float32)
    wide = x.astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-wide))
    softmax = np.exp(wide) / np.exp(wide).sum(0)
    chex.assert_trees_all_equal(Free().forward(x), x)
    chex.assert_trees_all_close(Box().forward(x), sigmoid.astype(np.float32), rtol=1e-6)
    chex.assert_trees_all_close(BOX.forward(x), (-0.5 + 2.5 * sigmoid).astype(np.float32), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(Simplex().forward(x), softmax.astype(np.float32), rtol=1e-6)


def test_two_models_need_one_latent_the_sigmoid_of_the_difference():
    """NP Merge's sigmoid is the softmax over two latents, a = a_1 - a_2."""
    a = jnp.asarray(normal(1, 2, 5), jnp.float32)
    two = Simplex().forward(a[:1] - a[1:])
    chex.assert_trees_all_close(two, Simplex().forward(a), rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_close(two[0], jax.nn.sigmoid(a[0] - a[1]), rtol=1e-6)
    assert Simplex().inverse(two).shape == (1, 5)
    assert Simplex().inverse(jax.nn.softmax(jnp.zeros((3, 5)), 0)).shape == (3, 5)


@pytest.mark.parametrize("n", [2, 3])
def test_a_corner_of_the_simplex_is_kept_to_rounding_and_its_latent_is_finite(n):
    corner = np.eye(n, dtype=np.float32)
    Simplex().check(corner)
    latent = Simplex().inverse(jnp.asarray(corner))
    chex.assert_tree_all_finite(latent)
    chex.assert_trees_all_close(Simplex().forward(latent), corner, atol=3e-7)
    gradient = jax.jit(jax.grad(lambda x: Simplex().forward(x)[0].sum()))(latent)
    chex.assert_tree_all_finite(gradient)
    assert bool(jnp.any(gradient != 0))


@pytest.mark.parametrize("value", [-0.5, 2.0])
def test_the_border_of_a_box_is_kept_to_rounding_and_its_latent_is_finite(value):
    border = np.full((2, 1), value, np.float32)
    BOX.check(border)
    latent = BOX.inverse(jnp.asarray(border))
    chex.assert_tree_all_finite(latent)
    chex.assert_trees_all_close(BOX.forward(latent), border, atol=1e-6)
    assert np.all(jax.jit(jax.grad(lambda x: BOX.forward(x).sum()))(latent) != 0)


@pytest.mark.parametrize("latent", [-1e4, 1e4])
@pytest.mark.parametrize("constraint", [Box(), Simplex()], ids=str)
def test_extreme_latents_saturate_without_nan(constraint, latent):
    value, gradient = jax.jit(jax.value_and_grad(lambda x: constraint.forward(x)[0].sum()))(np.full((1, 2), latent, np.float32))
    assert float(value) == (2.0 if latent > 0 else 0.0)
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize(
    ("constraint", "c", "message"),
    [
        (Box(), [[0.5], [1.2]], r"outside the box \[0.0, 1.0\], such as 1.2; choose another constraint"),
        (Box(), [[-0.1], [1.0]], r"outside the box \[0.0, 1.0\], such as -0.1"),
        (Simplex(), [[0.3], [0.3]], "outside the simplex: over the models they sum to 0.6"),
        (Simplex(), [[1.5], [-0.5]], "outside the simplex, such as -0.5"),
        (Simplex(), [[1.0]], "Simplex needs at least two models, got 1"),
        (Simplex(), [[0.5, 0.5], [0.5, 0.4]], "sum to 0.9"),
    ],
)
def test_coefficients_outside_are_refused(constraint, c, message):
    with pytest.raises(ValueError, match=message):
        constraint.check(np.asarray(c, np.float32))


def test_a_box_needs_room():
    for low, high in ((1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="Box needs low < high"):
            Box(low, high)
    Free().check(np.full((2, 1), 1e9, np.float32))
