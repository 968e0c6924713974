"""MaTS against its limits and a dense solve in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import trace
from npmerge import (
    Average,
    DiagonalFisher,
    Fisher,
    InputGram,
    KroneckerFactors,
    MaTS,
    RegMean,
    TaskArithmetic,
    collect,
    stack_models,
)
from npmerge.quadratics.operators import Identity, Kronecker
from npmerge.statistics.collect import SiteFactors, SiteGram
from tests.npmerge.toys import array, dense, normal

SHAPE = (3, 4)
MODELS = [{"kernel": array(k, *SHAPE), "bias": array(10 + k, SHAPE[1])} for k in range(3)]
STACK = stack_models(MODELS, {"kernel": array(20, *SHAPE), "bias": array(21, SHAPE[1])})
SITE = trace(dense, MODELS[0], jnp.zeros((2, SHAPE[0]))).sites[0]
CONVERGED = 60


def spread(seed: int, n: int) -> np.ndarray:
    """Positive definite matrices, one for each model."""
    x = normal(seed, 3, n + 4, n)
    return np.float32(x.swapaxes(1, 2) @ x / n)


def kernels64() -> np.ndarray:
    return np.stack([np.asarray(m["kernel"], np.float64) for m in MODELS])


def kronecker64(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The solution of sum_m A_m W B_m = sum_m A_m W_m B_m with the Kronecker products formed."""
    each = [np.kron(x, y) for x, y in zip(np.float64(a), np.float64(b), strict=True)]
    targets = sum(c @ w.ravel() for c, w in zip(each, kernels64(), strict=True))
    return np.linalg.solve(sum(each), targets).reshape(SHAPE)


def theta_of(merge: MaTS, a: np.ndarray, b: np.ndarray) -> dict:
    return merge.init(STACK, stats=factors(a, b))


def factors(a: np.ndarray, b: np.ndarray) -> dict:
    return {KroneckerFactors: {SITE.name: SiteFactors(jnp.ones(len(a)), jnp.asarray(a), jnp.asarray(b), SITE)}}


def grams(g: np.ndarray) -> dict:
    return {InputGram: {SITE.name: SiteGram(jnp.ones(3), jnp.asarray(g), SITE)}}


def information(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.1, 2, x.shape), jnp.float32), STACK.params)


@functools.partial(jax.jit, static_argnums=0)
def merged(merge, theta, stack=STACK):
    return merge.apply(theta, stack)


def close(a, b, rtol=1e-5, atol=1e-5):
    chex.assert_trees_all_close(a, jax.tree.map(lambda x: np.asarray(x, np.float32), b), rtol=rtol, atol=atol)


def base_start(operator, iterations, **kwargs):
    return MaTS(operator, iterations, TaskArithmetic(0.4), **kwargs)


@pytest.mark.parametrize("preconditioned", [True, False])
def test_the_identity_is_the_average_after_one_step(preconditioned):
    close(base_start("identity", 1, preconditioned=preconditioned)(STACK), Average()(STACK))


def test_no_iterations_are_the_start():
    stats = {DiagonalFisher: information(0), **grams(spread(0, 3)), **factors(spread(0, 3), spread(1, 4))}
    for operator in ("identity", "diagonal", "gram", "kronecker"):
        close(base_start(operator, 0)(STACK, stats=stats), TaskArithmetic(0.4)(STACK))


def test_the_diagonal_is_fisher_merging_after_one_step():
    stats = {DiagonalFisher: information(1)}
    close(base_start("diagonal", 1)(STACK, stats=stats), Fisher()(STACK, stats=stats))
    slow = base_start("diagonal", CONVERGED, preconditioned=False)(STACK, stats=stats)
    close(slow, Fisher()(STACK, stats=stats), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-36, 1e30])
def test_the_scale_of_the_information_does_not_matter(scale):
    merge, f = base_start("diagonal", 1), information(1)
    scaled = jax.tree.map(lambda x: x * jnp.float32(scale), f)
    close(merge(STACK, stats={DiagonalFisher: scaled}), merge(STACK, stats={DiagonalFisher: f}))


def test_where_nothing_has_information_the_start_stays():
    f = jax.tree.map(jnp.zeros_like, information(1))
    close(base_start("diagonal", 1)(STACK, stats={DiagonalFisher: f}), TaskArithmetic(0.4)(STACK))


def test_gram_matrices_are_regmean():
    stats = grams(spread(2, 3))
    close(base_start("gram", CONVERGED)(STACK, stats=stats), RegMean(1.0, 0.0)(STACK, stats=stats), rtol=1e-4, atol=1e-4)


def test_kronecker_with_identities_behind_is_the_same():
    a = spread(2, 3)
    merge, other = (base_start(kind, CONVERGED) for kind in ("kronecker", "gram"))
    eyes = np.broadcast_to(np.eye(SHAPE[1], dtype=np.float32), (3, SHAPE[1], SHAPE[1]))
    close(merged(merge, theta_of(merge, a, eyes)), other(STACK, stats=grams(a)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preconditioned", [True, False])
def test_kronecker_against_a_dense_solve(preconditioned):
    merge = base_start("kronecker", CONVERGED, preconditioned=preconditioned)
    a, b = spread(3, 3), spread(4, 4)
    theta = theta_of(merge, a, b)
    found = merged(merge, theta)["kernel"]
    np.testing.assert_allclose(found, kronecker64(a, b), rtol=1e-3, atol=1e-3)
    left = np.einsum("mij,mjk,mkl->il", a, kernels64() - np.float64(found), b)
    size = np.einsum("mij,mjk,mkl->il", a, kernels64(), b)
    assert np.linalg.norm(left) <= 2e-5 * np.linalg.norm(size)
    residuals = np.asarray(merge.residuals(theta, STACK)["kernel"])
    assert residuals.shape == (CONVERGED + 1, 1)
    start = np.float64(TaskArithmetic(0.4)(STACK)["kernel"])
    at_start = np.linalg.norm(np.einsum("mij,mjk,mkl->il", a, kernels64() - start, b)) / np.linalg.norm(size)
    np.testing.assert_allclose(residuals[0, 0], at_start, rtol=1e-4)
    assert residuals[-1, 0] <= 1e-5 < residuals[2, 0]
    assert residuals[-2, 0] == residuals[-1, 0]  # it stayed


def test_equal_factors_are_the_mean_and_one_model_is_itself():
    merge = base_start("kronecker", CONVERGED)
    a, b = (np.broadcast_to(spread(k, n)[:1], (3, n, n)) for k, n in ((5, 3), (6, 4)))
    close(merged(merge, theta_of(merge, a, b)), Average()(STACK), rtol=1e-4, atol=1e-4)
    alone = stack_models(MODELS[:1], STACK.base)
    theta = jax.tree.map(lambda x: x[:1], theta_of(merge, a, b))
    close(merged(merge, theta, alone), MODELS[0], rtol=1e-4, atol=1e-4)


def test_stopping_early_keeps_directions_of_small_weight_at_the_start():
    """Without the diagonal's help: conjugate gradients find the direction of large eigenvalue first."""
    values = np.float32([100.0, 1e-3, 1e-3])
    stats = grams(np.broadcast_to(np.diag(values), (3, 3, 3)))
    found = base_start("gram", 1, preconditioned=False)(STACK, stats=stats)["kernel"]
    start, mean = TaskArithmetic(0.4)(STACK)["kernel"], Average()(STACK)["kernel"]
    close(found[0], mean[0], atol=1e-4)
    close(found[1:], start[1:], atol=1e-3)
    close(base_start("gram", 1)(STACK, stats=stats)["kernel"], mean)


def test_matrices_of_equal_shape_are_solved_as_alone():
    """A second layer of the same shape, with other statistics, changes nothing of the first."""

    def apply(v, x):
        return dense(v["a"], x) + dense(v["b"], x)

    models = [{"a": m, "b": other} for m, other in zip(MODELS, MODELS[::-1], strict=True)]
    graph = trace(apply, models[0], jnp.zeros((2, SHAPE[0])))
    a = {"a/kernel": spread(7, 3), "b/kernel": 5 * spread(8, 3)}
    stats = {InputGram: {s.name: SiteGram(jnp.ones(3), jnp.asarray(a[s.name]), s) for s in graph.sites}}
    merge = MaTS("gram", 2)
    found = merge(stack_models(models), stats=stats)
    close(found["a"], merge(stack_models(MODELS), stats=grams(a["a/kernel"])), rtol=1e-4, atol=1e-5)
    close(found["b"], merge(stack_models(MODELS[::-1]), stats=grams(a["b/kernel"])), rtol=1e-4, atol=1e-5)
    stack = stack_models(models)
    assert str(jax.make_jaxpr(merge.apply)(merge.init(stack, stats=stats), stack)).count(" scan[") == 1


def test_a_weight_that_is_used_twice_has_the_sum_of_both_products():
    """y = W^T relu(W x): each use has factors of its own, which no one product of Kronecker is the sum of."""

    def twice(v, x):
        return jnp.tanh(x @ v["w"]) @ v["w"]

    models = [{"w": array(60 + k, 3, 3)} for k in range(3)]
    sites = trace(twice, models[0], jnp.zeros((2, 3))).sites
    pairs = [(spread(20 + k, 3), spread(30 + k, 3)) for k in range(len(sites))]
    found = {s.name: SiteFactors(jnp.ones(3), *map(jnp.asarray, ab), s) for s, ab in zip(sites, pairs, strict=True)}
    merged = MaTS(iterations=CONVERGED)(stack_models(models), stats={KroneckerFactors: found})
    each = [sum(np.kron(np.float64(a[m]), np.float64(b[m])) for a, b in pairs) for m in range(3)]
    targets = sum(c @ np.float64(m["w"]).ravel() for c, m in zip(each, models, strict=True))
    assert len(sites) == 2
    np.testing.assert_allclose(merged["w"], np.linalg.solve(sum(each), targets).reshape(3, 3), rtol=1e-3, atol=1e-3)


def test_from_data():
    """Factors as they are collected: the merge lies between the mean and where it converges to."""
    data = [(array(70, 12, SHAPE[0]), None)]
    graph = trace(dense, MODELS[0], jnp.zeros((2, SHAPE[0])))
    stats = collect(dense, graph, MODELS, data, [MaTS()])
    assert set(stats) == {KroneckerFactors}
    merge = MaTS(iterations=3)
    left = np.asarray(merge.residuals(merge.init(STACK, stats=stats), STACK)[SITE.name])
    assert left.shape == (4, 1)
    assert left[-1] < 0.5 * left[0]


def test_gradients_in_the_factors_agree_with_differences():
    merge, step, turn = MaTS(iterations=2), 1e-2, jnp.asarray(spread(11, 3))
    theta = theta_of(merge, spread(9, 3), spread(10, 4))

    @jax.jit
    @jax.value_and_grad
    def total(a):
        kernel = Kronecker((a,), theta["operators"]["kernel"].gradients, (SITE,))
        return jnp.sum(jnp.sin(merge.apply({**theta, "operators": {"kernel": kernel, "bias": Identity()}}, STACK)["kernel"]))

    a = theta["operators"]["kernel"].inputs[0]
    difference = float(total(a + step * turn)[0] - total(a - step * turn)[0]) / (2 * step)
    assert float(jnp.vdot(total(a)[1], turn)) == pytest.approx(difference, rel=0.02, abs=1e-3)


def test_errors():
    with pytest.raises(ValueError, match=r"operator must be one of 'identity', .*, got 'hessian'"):
        MaTS("hessian")
    with pytest.raises(ValueError, match="iterations must be an integer of 0 or more, got -1"):
        MaTS(iterations=-1)
    with pytest.raises(ValueError, match=r"MaTS takes a merge as its start, got \(float\)"):
        MaTS(start=0.3)
    with pytest.raises(ValueError, match="tolerance must be a number from 0 to 1, got 1e"):
        MaTS(tolerance=1e308)
    with pytest.raises(ValueError, match="TaskArithmetic needs a base"):
        base_start("identity", 1)(stack_models(MODELS))
    assert MaTS("gram", start=Fisher()).needs == (InputGram, DiagonalFisher)
    with pytest.raises(ValueError, match=r"MaTS needs stats.*InputGram"):
        MaTS("gram")(STACK)
    with pytest.raises(ValueError, match=r"MaTS needs stats.*KroneckerFactors"):
        MaTS()(STACK)
    with pytest.raises(ValueError, match=r"the factors of 'kernel' are of other models or another layer: got .*\(2, 3, 3\)"):
        MaTS()(STACK, stats=factors(spread(0, 3)[:2], spread(1, 4)[:2]))
    with pytest.raises(ValueError, match="the factors of 'kernel' are not finite"):
        MaTS()(STACK, stats=factors(np.nan * spread(0, 3), spread(1, 4)))
