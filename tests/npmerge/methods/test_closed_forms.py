"""The closed forms against float64 numpy, written from the formulas: methods/average, task_arithmetic, slerp, fisher."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npmerge import Average, DiagonalFisher, Fisher, Slerp, Stack, TaskArithmetic, stack_models
from tests.npmerge.toys import normal

SHAPES = {"kernel": (3, 4), "bias": (4,)}


def model(seed: int) -> dict[str, np.ndarray]:
    return {name: normal(10 * seed + k, *shape).astype(np.float32) for k, (name, shape) in enumerate(SHAPES.items())}


MODELS = [model(k) for k in range(3)]
BASE = model(7)


def close(got, expected):
    chex.assert_trees_all_close(got, jax.tree.map(lambda x: np.asarray(x, np.float32), expected), rtol=1e-5, atol=1e-6)


def over(function, *trees):
    """A float64 formula over the leaves of several trees."""
    return jax.tree.map(lambda *leaves: function(*(np.asarray(x, np.float64) for x in leaves)), *trees)


def test_average():
    close(Average()(stack_models(MODELS)), over(lambda a, b, c: (a + b + c) / 3, *MODELS))
    close(Average()(stack_models(MODELS, BASE)), over(lambda a, b, c: (a + b + c) / 3, *MODELS))


@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.3, 1 / 3, 1.0])
def test_task_arithmetic(scale):
    merged = TaskArithmetic(scale)(stack_models(MODELS, BASE))
    close(merged, over(lambda o, a, b, c: o + scale * (a + b + c - 3 * o), BASE, *MODELS))


def test_task_arithmetic_at_its_ends():
    chex.assert_trees_all_equal(TaskArithmetic(0.0)(stack_models(MODELS, BASE)), BASE)
    close(TaskArithmetic(1.0)(stack_models(MODELS[:1], BASE)), MODELS[0])
    close(TaskArithmetic(1 / 3)(stack_models(MODELS, BASE)), Average()(stack_models(MODELS)))


def slerp64(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    cosine = np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))
    omega = np.arccos(cosine)
    return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp(t):
    merged = Slerp(t)(stack_models(MODELS[:2]))
    close(merged, over(lambda a, b: slerp64(a, b, t), *MODELS[:2]))


def test_slerp_at_its_ends():
    stack = stack_models(MODELS[:2])
    close(Slerp(0.0)(stack), MODELS[0])
    close(Slerp(1.0)(stack), MODELS[1])


def pair(a, b) -> Stack:
    return stack_models([{"w": jnp.asarray(x, jnp.float32)} for x in (a, b)])


def test_slerp_of_colinear_tensors_is_linear():
    a = normal(3, 2, 3)
    close(Slerp(0.25)(pair(a, 3 * a)), {"w": 1.5 * a})
    close(Slerp(0.25)(pair(a, 0 * a)), {"w": 0.75 * a})
    close(Slerp(0.25)(pair(0 * a, 0 * a)), {"w": 0 * a})
    close(Slerp(0.25)(pair([2.0], [-1.0])), {"w": np.array([1.25])})  # a number has no direction


def test_slerp_of_orthonormal_tensors():
    t = 0.3
    close(Slerp(t)(pair([1.0, 0.0], [0.0, 1.0])), {"w": np.array([np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)])})


def test_slerp_treats_the_tensor_as_one_vector():
    """A rotation in the plane of two matrices keeps the norm of the whole."""
    a, b = np.eye(2) / np.sqrt(2), np.array([[0, 1], [-1, 0]]) / np.sqrt(2)
    merged = np.asarray(Slerp(0.4)(pair(a, b))["w"])
    assert np.linalg.norm(merged) == pytest.approx(1, abs=1e-6)


def test_slerp_errors():
    with pytest.raises(ValueError, match="undefined for opposite tensors, as those at 'w' are"):
        Slerp()(pair([1.0, 2.0], [-2.0, -4.0]))
    with pytest.raises(ValueError, match="exactly two models, got 3"):
        Slerp()(stack_models(MODELS))
    for t in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="t must be a number from 0 to 1"):
            Slerp(t)


def information(*seeds: int) -> dict[str, jax.Array]:
    rng = [np.random.default_rng(s) for s in seeds]
    return {name: jnp.asarray([r.uniform(0.1, 2, shape) for r in rng], jnp.float32) for name, shape in SHAPES.items()}


def fisher(f, models=MODELS):
    return Fisher()(stack_models(models), stats={DiagonalFisher: f})


def test_fisher_minimises_the_sum_of_quadratic_losses():
    """sum_k (theta - theta_k)^T diag(F_k) (theta - theta_k) / 2: its gradient is zero at the merge, solved by numpy."""
    f = information(1, 2, 3)
    merged = fisher(f)
    for name in SHAPES:
        A = np.diag(np.asarray(f[name], np.float64).sum(0).ravel())
        b = sum((np.asarray(f[name][k], np.float64) * MODELS[k][name]).ravel() for k in range(3))
        close(merged[name], np.linalg.solve(A, b).reshape(SHAPES[name]))


def test_fisher_limits():
    f = information(1, 2, 3)
    mean = over(lambda a, b, c: (a + b + c) / 3, *MODELS)
    close(fisher(jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), f)), mean)  # equal information
    only = jax.tree.map(lambda x: x * jnp.asarray([1.0, 0.0, 0.0]).reshape(3, *(1,) * (x.ndim - 1)), f)
    chex.assert_trees_all_equal(fisher(only), MODELS[0])
    close(fisher(jax.tree.map(jnp.zeros_like, f)), mean)  # no information anywhere


@pytest.mark.parametrize("scale", [1e-37, 1e-10, 1e10, 1e37])
def test_fisher_does_not_depend_on_the_scale_of_the_information(scale):
    f = information(1, 2, 3)
    close(fisher(jax.tree.map(lambda x: x * jnp.float32(scale), f)), fisher(f))


def test_fisher_with_weights():
    f, weights = information(1, 2, 3), (0.2, 0.3, 0.9)
    merged = Fisher(weights)(stack_models(MODELS), stats={DiagonalFisher: f})
    wanted = over(lambda f, *m: sum(w * x * y for w, x, y in zip(weights, f, m, strict=True)) / np.tensordot(weights, f, 1),
                  f, *MODELS)  # fmt: skip
    close(merged, wanted)
    stack, nothing = stack_models(MODELS), jax.tree.map(jnp.zeros_like, f)
    close(Fisher((0.0, 2.0, 0.0))(stack, stats={DiagonalFisher: f}), MODELS[1])
    mean = over(lambda a, b, c: (0.2 * a + 0.3 * b + 0.9 * c) / 1.4, *MODELS)
    close(Fisher(weights)(stack, stats={DiagonalFisher: nothing}), mean)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_fisher_of_normalised_information(scale):
    """The information of a model counts up to a factor; a model without any does not count."""
    f = information(1, 2, 3)
    norms = [np.sqrt(sum(np.square(np.asarray(x[k], np.float64)).sum() for x in f.values())) for k in range(3)]
    norms[2] = np.inf
    shares = {name: [np.asarray(x[k], np.float64) / norms[k] for k in range(3)] for name, x in f.items()}
    wanted = {name: sum(x * m[name] for x, m in zip(s, MODELS, strict=True)) / sum(s) for name, s in shares.items()}
    factors = jnp.asarray([scale, 3.0, 0.0], jnp.float32)
    scaled = jax.tree.map(lambda x: x * factors.reshape(3, *(1,) * (x.ndim - 1)), f)
    close(Fisher(normalise=True)(stack_models(MODELS), stats={DiagonalFisher: scaled}), wanted)


def test_fisher_mixes_parameters_with_and_without_information():
    f = {"w": jnp.array([[1.0, 0.0, 0.0], [3.0, 0.0, 5.0]])}
    stack = pair([0.0, 2.0, 7.0], [4.0, 6.0, 9.0])
    close(Fisher()(stack, stats={DiagonalFisher: f}), {"w": np.array([3.0, 4.0, 9.0])})


def test_fisher_is_differentiable_in_the_information_even_where_there_is_none():
    stack = pair([0.0, 2.0, 7.0], [4.0, 6.0, 9.0])
    f = {"w": jnp.array([[1.0, 0.0, 0.0], [3.0, 0.0, 5.0]])}

    def total(f):
        return Fisher()(stack, stats={DiagonalFisher: f})["w"].sum()

    gradient = jax.jit(jax.grad(total))(f)["w"]
    chex.assert_tree_all_finite(gradient)
    # d/dF_1 (F_1 a + F_2 b) / (F_1 + F_2) = F_2 (a - b) / (F_1 + F_2)^2
    assert float(gradient[0, 0]) == pytest.approx(3 * (0 - 4) / 16, rel=1e-5)


def test_fisher_errors():
    with pytest.raises(ValueError, match="Fisher needs stats"):
        Fisher()(stack_models(MODELS))
    with pytest.raises(ValueError, match="the Fisher statistics are of other models"):
        fisher(information(1, 2))
    with pytest.raises(ValueError, match="Fisher needs weights of 0 or more"):
        Fisher((1.0, -1.0))
    with pytest.raises(ValueError, match="got 2 weights for 3 models"):
        Fisher((1.0, 1.0))(stack_models(MODELS), stats={DiagonalFisher: information(1, 2, 3)})
    with pytest.raises(ValueError, match=r"non-finite values of 36 in 'kernel'"):
        fisher({"kernel": information(1, 2, 3)["kernel"].at[0].set(jnp.nan), "bias": information(1, 2, 3)["bias"]})
