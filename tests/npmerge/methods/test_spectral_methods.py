"""Iso-C, Iso-CTS, TSV-M and WUDI against float64 numpy, written from the papers with matrices (out, in)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import polar as scipy_polar

from npmerge import IsoC, IsoCTS, Learned, Stack, TsvM, Wudi, stack_models
from npmerge.constraints import Free
from npmerge.granularity import PerTensor
from npmerge.task_vectors.spectral import polar, svd
from tests.npmerge.toys import array, float64, normal

SPECTRAL = (IsoC, IsoCTS, TsvM, Wudi)
OUT, IN = 7, 9
BASE = normal(50, OUT, IN)
TAUS = [normal(k, OUT, IN) for k in range(2)]
methods = pytest.mark.parametrize("method", SPECTRAL, ids=lambda m: m.__name__)


def stack(taus, base=BASE) -> Stack:
    """Kernels of JAX: transposed."""
    models = [{"w": jnp.asarray((base + tau).T, jnp.float32)} for tau in taus]
    return stack_models(models, {"w": jnp.asarray(base.T, jnp.float32)})


@functools.partial(jax.jit, static_argnums=0)
def applied(merge, theta, stack):
    return merge.apply(theta, stack)


def delta(merge, taus, base=BASE) -> np.ndarray:
    models = stack(taus, base)
    return float64(applied(merge, merge.init(models), models)["w"]).T - base


def close(got, expected, scale=1.0):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * scale)


def svd64(x):
    return np.linalg.svd(x, full_matrices=False)


def iso_c64(taus):
    u, s, vt = svd64(sum(taus))
    return s.mean() * u @ vt


def iso_cts64(taus, each):
    rank = min(OUT, IN) - each * len(taus)
    u, s, vt = svd64(sum(taus))
    lefts, values, rights = [u[:, :rank]], [s[:rank]], [vt[:rank]]
    for tau in taus:
        tu, ts, tvt = svd64(tau - lefts[0] @ lefts[0].T @ tau)
        lefts.append(tu[:, :each]), values.append(ts[:each]), rights.append(tvt[:each])
    (u, _), (vt, _) = scipy_polar(np.concatenate(lefts, 1)), scipy_polar(np.concatenate(rights))
    return np.concatenate(values).mean() * u @ vt


def tsv_m64(taus):
    each = min(OUT, IN) // len(taus)
    parts = [(u[:, :each], s[:each], vt[:each]) for u, s, vt in map(svd64, taus)]
    u, s, vt = (np.concatenate([p[k] for p in parts], axis) for k, axis in enumerate((1, 0, 0)))
    return scipy_polar(u)[0] * s @ scipy_polar(vt)[0]


def wudi64(taus):
    """RegMean on task vectors."""
    grams = [tau.T @ tau / np.sum(tau**2) for tau in taus]
    return sum(t @ g for t, g in zip(taus, grams, strict=True)) @ np.linalg.pinv(sum(grams), rcond=1e-12)


def test_iso_c():
    close(delta(IsoC(), TAUS), iso_c64(TAUS))
    values = np.linalg.svd(delta(IsoC(), TAUS), compute_uv=False)
    np.testing.assert_allclose(values, np.linalg.svd(sum(TAUS), compute_uv=False).mean(), rtol=1e-5)


def test_iso_c_leaves_directions_that_no_task_has():
    taus = [np.outer(np.eye(OUT)[k], np.eye(IN)[k]) * (k + 1.0) for k in range(2)]
    close(delta(IsoC(), taus, 0 * BASE), 1.5 * np.eye(OUT, IN) * (np.arange(OUT) < 2)[:, None])


def test_iso_cts():
    close(delta(IsoCTS(common=0.4), TAUS), iso_cts64(TAUS, each=2))
    close(delta(IsoCTS(common=0.8), TAUS), iso_cts64(TAUS, each=1))
    close(delta(IsoCTS(common=1.0), TAUS), iso_c64(TAUS))
    assert np.abs(iso_cts64(TAUS, each=1) - iso_c64(TAUS)).max() > 0.1


def test_tsv_m():
    close(delta(TsvM(), TAUS), tsv_m64(TAUS))
    close(delta(TsvM(), TAUS[:1]), TAUS[0])  # one task


def test_tsv_m_of_tasks_that_do_not_interfere_is_their_sum():
    taus = [np.zeros((OUT, IN)), np.zeros((OUT, IN))]
    taus[0][:3, :4], taus[1][4:, 4:] = normal(1, 3, 4), normal(2, 3, 5)
    close(delta(TsvM(), taus), sum(taus))


def test_tsv_m_of_copies_keeps_the_strongest_directions():
    u, s, vt = svd64(TAUS[0])
    close(delta(TsvM(), [TAUS[0], TAUS[0]]), u[:, :3] * s[:3] @ vt[:3])


def test_tsv_m_with_more_tasks_than_directions_takes_one_of_each():
    taus = [normal(k, 2, 3) for k in range(3)]
    parts = [(u[:, :1], s[:1], vt[:1]) for u, s, vt in map(svd64, taus)]
    u, s, vt = (np.concatenate([p[k] for p in parts], axis) for k, axis in enumerate((1, 0, 0)))
    close(delta(TsvM(), taus, np.zeros((2, 3))), scipy_polar(u)[0] * s @ scipy_polar(vt)[0])


def test_wudi_is_reg_mean_on_task_vectors():
    close(delta(Wudi(), TAUS), wudi64(TAUS))
    some = [tau * (np.arange(IN) < 5) for tau in TAUS]  # inputs that no task vector has
    close(delta(Wudi(), some, 0 * BASE), wudi64(some))
    close(delta(Wudi(), [TAUS[0], 0 * TAUS[0]]), TAUS[0])


def test_wudi_of_tasks_that_do_not_interfere_is_their_sum():
    taus = [np.zeros((OUT, IN)), np.zeros((OUT, IN))]
    taus[0][:, :4], taus[1][:, 4:] = normal(1, OUT, 4), normal(2, OUT, 5)
    close(delta(Wudi(), taus), sum(taus))


def test_wudi_is_a_minimum():
    def loss(w):
        return sum(np.sum(((w - tau) @ tau.T) ** 2) / np.sum(tau**2) for tau in TAUS)

    best = delta(Wudi(), TAUS)
    for seed in range(3):
        direction = 1e-2 * normal(seed, OUT, IN)
        assert loss(best) < min(loss(best + direction), loss(best - direction))
        np.testing.assert_allclose(loss(best + direction), loss(best - direction), rtol=1e-5)


def descended64(taus, iterations, rate):
    """Adam from the sum, as published."""
    w, first, second = sum(taus), 0.0, 0.0
    for t in range(1, iterations + 1):
        g = sum(2 * (w - tau) @ tau.T @ tau / np.sum(tau**2) for tau in taus)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        w = w - rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return w


def test_wudi_by_steps_from_the_sum():
    close(delta(Wudi(iterations=0), TAUS), sum(TAUS))
    close(delta(Wudi(iterations=12, rate=0.01), TAUS), descended64(TAUS, 12, 0.01))
    assert np.abs(descended64(TAUS, 12, 0.01) - sum(TAUS)).max() > 0.05
    close(delta(Wudi(iterations=300, rate=0.05), TAUS), wudi64(TAUS), scale=5e3)  # flat directions come last
    assert np.abs(sum(TAUS) - wudi64(TAUS)).max() > 0.5
    merge, zero = Wudi(iterations=3), jnp.zeros((2, 3, 4))
    gradient = jax.jit(jax.grad(lambda tau: merge.matrix(tau).sum()))
    assert np.isfinite(gradient(zero)).all() and np.isfinite(gradient(zero.at[0].set(1.0))).all()
    with pytest.raises(ValueError, match=r"iterations must be an integer of 0 or more, got 1.5"):
        Wudi(iterations=1.5)
    with pytest.raises(ValueError, match="rate must be a finite number of 0 or more"):
        Wudi(rate=-1)


@methods
def test_models_equal_to_the_base_give_it_with_finite_gradients(method):
    zero = stack([0 * BASE, 0 * BASE])

    def total(theta, stack):
        return method().apply(theta, stack)["w"].sum()

    theta = method().init(zero)
    np.testing.assert_array_equal(applied(method(), theta, zero)["w"], zero.base["w"])
    for g in jax.tree.leaves(jax.jit(jax.grad(total, argnums=(0, 1)))(theta, zero)):
        assert np.isfinite(g).all()


@methods
def test_the_scale_is_learned_and_what_is_no_matrix_is_averaged(method):
    """Of each model; together they scale the whole, so that gradients add up to that of one scale."""
    models = [{"w": array(k, IN, OUT), "conv": array(k, 2, 2, 3, 4)} for k in (0, 1)]
    both = stack_models(models, jax.tree.map(jnp.zeros_like, models[0]))
    merge = method(0.5)
    theta = merge.init(both)
    merged = merge.apply(theta, both)
    close(merged["conv"], 0.25 * (normal(0, 2, 2, 3, 4) + normal(1, 2, 2, 3, 4)))
    gradient = jax.jit(jax.grad(lambda theta: (merge.apply(theta, both)["w"] ** 2).sum()))(theta)
    np.testing.assert_allclose(gradient["w"].sum(), 2 * (merged["w"] ** 2).sum() / 0.5, rtol=1e-4)
    assert gradient["w"].shape == (2, 1, 1)
    assert not gradient["conv"].any()


@methods
def test_gradients_with_respect_to_the_models(method):
    """Against differences of the float64 formulas."""
    formula = {IsoC: iso_c64, IsoCTS: lambda taus: iso_cts64(taus, each=2), TsvM: tsv_m64, Wudi: wudi64}[method]
    merge = IsoCTS(common=0.4) if method is IsoCTS else method()
    weights, direction = normal(3, OUT, IN), [normal(k, OUT, IN) for k in (4, 5)]

    def total(params):
        return (merge.matrix(params) * jnp.asarray(weights, jnp.float32)).sum()

    gradient = np.asarray(jax.jit(jax.grad(total))(jnp.asarray(np.stack(TAUS), jnp.float32)), np.float64)
    ahead, behind = (formula([t + step * d for t, d in zip(TAUS, direction, strict=True)]) for step in (1e-5, -1e-5))
    np.testing.assert_allclose(np.sum(gradient * direction), np.sum(weights * (ahead - behind)) / 2e-5, rtol=2e-3)


@pytest.mark.parametrize("values", [(3.0, 2.0, 1.0), (2.0, 2.0, 1.0), (1.0, 1.0, 1.0)], ids=str)
def test_the_derivative_of_the_polar_factor_also_at_equal_singular_values(values):
    q, r = np.linalg.qr(normal(0, 5, 3))[0], np.linalg.qr(normal(1, 3, 3))[0]
    x, dx = q * np.array(values) @ r, normal(2, 5, 3)
    got = jax.jvp(polar, (jnp.asarray(x, jnp.float32),), (jnp.asarray(dx, jnp.float32),))[1]
    expected = (scipy_polar(x + 1e-6 * dx)[0] - scipy_polar(x - 1e-6 * dx)[0]) / 2e-6
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_the_derivative_of_the_decomposition():
    x, dx = normal(0, 4, 3), normal(1, 4, 3)
    (u, s, vt), (du, ds, dvt) = float64(jax.jvp(svd, (jnp.asarray(x, jnp.float32),), (jnp.asarray(dx, jnp.float32),)))
    close(du * s @ vt + u * ds @ vt + u * s @ dvt, dx)  # the product rule
    close(u.T @ du + du.T @ u, np.zeros((3, 3)))  # columns stay orthonormal
    close(dvt @ vt.T + vt @ dvt.T, np.zeros((3, 3)))


def test_errors():
    for method in SPECTRAL:
        with pytest.raises(ValueError, match="scale must be a finite number, got nan"):
            method(float("nan"))
        with pytest.raises(ValueError, match=f"{method.__name__} needs a base"):
            method()(Stack(stack(TAUS).params))
        with pytest.raises(ValueError, match="starts from a linear merge"):
            Learned(method(), PerTensor(), Free())
    with pytest.raises(ValueError, match="common must be a number from 0 to 1"):
        IsoCTS(common=1.5)


def test_matrices_of_one_shape_are_decomposed_in_one_batch():
    tree = {"a": normal(0, 3, 4), "b": normal(1, 3, 4), "c": normal(2, 4, 3), "bias": normal(3, 4)}
    models = [jax.tree.map(lambda x, k=k: np.float32(x + normal(4 + k, *x.shape)), tree) for k in range(2)]
    stack = stack_models(models, jax.tree.map(np.float32, tree))
    merge = IsoC()
    theta = merge.init(stack)
    assert str(jax.make_jaxpr(merge.apply)(theta, stack)).count(" svd[") == 2
    alone = {n: merge(Stack({n: x}, {n: stack.base[n]}))[n] for n, x in stack.params.items()}
    together = merge(stack)
    for name, x in alone.items():
        np.testing.assert_allclose(together[name], x, rtol=1e-6, atol=1e-6)
