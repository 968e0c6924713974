"""CKA against its definition, its invariances and its blind spot."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import MinibatchCKA, linear_cka, rbf_cka
from alignment.activations import cka
from npmerge import collect
from tests.alignment import networks
from tests.alignment.methods.test_procrustes import rotation

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((40, 6)) @ RNG.standard_normal((6, 6)) + 3).astype(np.float32)
Y = (np.tanh(X - 3) @ RNG.standard_normal((6, 6)) + RNG.standard_normal((40, 6))).astype(np.float32)
WIDER = (Y @ RNG.standard_normal((6, 9))).astype(np.float32)
BOTH = pytest.mark.parametrize("unbiased", [True, False])
EVERY = pytest.mark.parametrize("cka", [linear_cka, rbf_cka])


def by_definition(k, m, unbiased):
    """HSIC of two kernel matrices: tr(K H M H) / (n - 1)^2, or equation 5 of Song et al. (2012) in float64."""
    n, one = len(k), np.ones(len(k))
    if not unbiased:
        h = np.eye(n) - 1 / n
        return np.trace(k @ h @ m @ h) / (n - 1) ** 2
    k, m = (z - np.diag(np.diag(z)) for z in (k, m))
    pairs = np.trace(k @ m) + one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ m @ one
    return pairs / (n * (n - 3))


def expected(kernel, x, y, unbiased):
    k, m = kernel(np.float64(x)), kernel(np.float64(y))
    xy, xx, yy = (by_definition(*pair, unbiased) for pair in ((k, m), (k, k), (m, m)))
    return xy / np.sqrt(xx * yy)


@BOTH
@pytest.mark.parametrize("samples", [40, 5])
def test_linear_cka_is_its_definition(unbiased, samples):
    """With more samples than units and with fewer, where the other of two equal products is taken."""
    x, y = X[:samples], WIDER[:samples]
    assert float(linear_cka(x, y, unbiased=unbiased)) == pytest.approx(expected(lambda z: z @ z.T, x, y, unbiased), abs=1e-4)


def test_unbiased_cka_of_many_samples_is_the_same_without_their_products(monkeypatch):
    x, y = np.float32(X), np.float32(WIDER)
    by_products = float(linear_cka(x, y, unbiased=True))
    monkeypatch.setattr(cka, "FEW", 10)
    assert float(linear_cka(x, y, unbiased=True)) == pytest.approx(by_products, abs=1e-4)
    assert float(linear_cka(x[:12], y[:12], unbiased=True)) == pytest.approx(
        expected(lambda z: z @ z.T, x[:12], y[:12], True), abs=1e-4
    )


def test_samples_whose_square_is_beyond_32_bits():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50_000, 2)).astype(np.float32)
    y = (x @ np.array([[1.0, 0.5], [0.0, 2.0]]) + rng.normal(size=x.shape)).astype(np.float32)
    unbiased, biased = (float(linear_cka(x, y, unbiased=choice)) for choice in (True, False))
    assert 0.2 < biased < 0.9 and unbiased == pytest.approx(biased, abs=1e-3)


@BOTH
@pytest.mark.parametrize("sigma", [0.4, 1.0])
def test_rbf_cka_is_its_definition(unbiased, sigma):
    def kernel(z):
        squares = np.square(z[:, None] - z[None]).sum(-1)
        return np.exp(-squares / (2 * sigma**2 * np.median(squares[np.triu_indices(len(z), 1)])))

    assert float(rbf_cka(X, Y, sigma=sigma, unbiased=unbiased)) == pytest.approx(expected(kernel, X, Y, unbiased), abs=1e-4)


@EVERY
@BOTH
def test_the_same_features_up_to_rotation_shift_and_scale_are_the_same(cka, unbiased):
    q, reference = np.float32(rotation(6)), float(cka(X, Y, unbiased=unbiased))
    assert float(cka(X, X, unbiased=unbiased)) == pytest.approx(1, abs=1e-5)
    assert 0.1 < reference < 0.95
    for moved in (Y @ q, 1000 * Y, Y + 50, Y[:, ::-1], 0.01 * (Y @ q) - 3):
        assert float(cka(X, moved, unbiased=unbiased)) == pytest.approx(reference, abs=2e-3)
    assert float(cka(Y, X, unbiased=unbiased)) == pytest.approx(reference, abs=1e-5)


@EVERY
def test_invertible_maps_are_seen(cka):
    """What CCA is blind to."""
    stretched = X @ np.diag(np.float32([30, 1, 1, 1, 1, 1]))
    assert float(cka(X, stretched)) < 0.9


@EVERY
def test_independent_noise_is_zero_when_unbiased_and_far_from_it_when_biased(cka):
    draws = np.random.default_rng(1).standard_normal((20, 2, 20, 50)).astype(np.float32)
    values = {u: np.mean([float(cka(x, y, unbiased=u)) for x, y in draws]) for u in (True, False)}
    assert abs(values[True]) < 0.03
    assert values[False] == pytest.approx(0.71 if cka is linear_cka else 0.81, abs=0.03)


@EVERY
@BOTH
def test_constant_features_have_a_value_and_a_gradient(cka, unbiased):
    derivative = jax.jit(jax.value_and_grad(lambda x, y: cka(x, y, unbiased=unbiased)))
    flat_x, flat_y = np.full_like(X, 3.3), np.full_like(Y, 3.3)
    assert derivative(X, Y)[0] > 0.1
    for x, y in ((flat_x, Y), (X, flat_y), (flat_x, flat_y)):
        value, gradient = derivative(x, y)
        assert value == 0
        assert bool(jnp.isfinite(gradient).all())


@EVERY
@BOTH
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_features_that_are_not_finite_have_no_value(cka, unbiased, bad):
    """Not the zero of constant features, in either place, beside those neither."""
    broken = jnp.asarray(X).at[3, 2].set(bad)
    for x, y in ((broken, Y), (Y, broken), (broken, broken), (broken, np.zeros_like(Y))):
        assert jnp.isnan(cka(x, y, unbiased=unbiased))


@EVERY
@BOTH
@pytest.mark.parametrize("scale", [1e-12, 1e-30, 1e15])
def test_scales_whose_fourth_power_is_out_of_range(cka, unbiased, scale):
    x = (X - X.mean(0)) * np.float32(scale)
    assert float(cka(x, Y, unbiased=unbiased)) == pytest.approx(float(cka(X, Y, unbiased=unbiased)), abs=1e-4)


@pytest.mark.parametrize("far", [1e3, 1e5])
def test_one_far_sample_does_not_drown_the_others(far):
    """Against the definition in float64."""
    x, y = (np.array(f, np.float64) for f in (X, Y))
    x[0], y[0] = x[0] + far, y[0] + far

    def hsic(a, b):
        n, (k, m) = len(a), (f @ f.T for f in (a, b))
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        total = np.sum(k * m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
        return total / (n * (n - 3))

    expected = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert float(linear_cka(x.astype(np.float32), y.astype(np.float32))) == pytest.approx(expected, abs=1e-3)


@EVERY
def test_features_that_do_not_fit_are_refused(cka):
    for x, y in ((X, Y[:-1]), (X[0], Y[0]), (X[:3], Y[:3])):
        with pytest.raises(ValueError, match=r"CKA takes features \(samples, units\) of the same samples, at least 4: got \("):
            cka(x, y)
    assert 0 < float(cka(X[:3], Y[:3], unbiased=False)) <= 1 + 1e-5
    with pytest.raises(ValueError, match="must be positive, got 0"):
        rbf_cka(X, Y, sigma=0)


def test_one_outlier_moves_it():
    """One sample of forty, translated: two representations that agree on the others no longer do, and the reverse."""
    far = X.copy()
    far[0] += 500
    assert float(linear_cka(X, far)) < 0.3
    noise = np.random.default_rng(5).standard_normal((2, 40, 6)).astype(np.float32)
    assert abs(float(linear_cka(*noise))) < 0.3
    noise[:, 0] += 500
    assert float(linear_cka(*noise, unbiased=False)) > 0.99


# ---------------------------------------------------------------------------------------------------------- in networks


def test_a_unit_that_nothing_reads_moves_it_and_not_the_function():
    net = networks.network("mlp")
    idle = jax.tree.map(lambda x: x, net.variables)
    idle["second"] = idle["second"] | {"kernel": idle["second"]["kernel"].at[3].set(0)}
    loud = jax.tree.map(lambda x: x, idle)
    loud["first"] = {"kernel": idle["first"]["kernel"].at[:, 3].mul(100), "bias": idle["first"]["bias"]}
    x = networks.data(64, 5)
    np.testing.assert_allclose(net.apply(loud, x), net.apply(idle, x), atol=1e-6)
    found = collect(net.apply, net.graph, [idle, loud], [(x, None)], [MinibatchCKA()])[MinibatchCKA]
    assert found["first"][1] < 0.6
    assert found["second"][1] == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def mlp():
    net, x = networks.network("mlp"), networks.data(48, 5)
    return net, x, [net.variables, net.another(1), net.another(2)]


def test_one_batch_is_the_unbiased_cka_of_all_samples(mlp):
    net, x, models = mlp
    found = collect(net.apply, net.graph, models, [(x, None)], [MinibatchCKA()])[MinibatchCKA]
    assert found.keys() == net.graph.taps.keys()
    features = [alignment.capture(net.apply, net.graph, m, x).nodes for m in models]
    for node, values in found.items():
        assert values.shape == (3,)
        assert values[0] == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(values, [linear_cka(features[0][node], f[node]) for f in features], atol=1e-5)


@pytest.mark.parametrize("cuts", [(0, 16, 32, 48), (0, 16, 48)])
def test_batches_are_averaged_before_they_are_divided(mlp, cuts):
    """Each by its samples; the mean of the ratios of small batches would be another number."""
    net, x, models = mlp
    batches = [(x[a:b], None) for a, b in itertools.pairwise(cuts)]
    found = collect(net.apply, net.graph, models, batches, [MinibatchCKA()])[MinibatchCKA]
    features = [np.float64(alignment.capture(net.apply, net.graph, m, x).nodes["first"]) for m in models[:2]]
    kernels = [[f[a:b] @ f[a:b].T for a, b in itertools.pairwise(cuts)] for f in features]
    xy, xx, yy = (
        np.average([by_definition(*two, True) for two in zip(*pair, strict=True)], weights=np.diff(cuts))
        for pair in ((kernels[0], kernels[1]), (kernels[0], kernels[0]), (kernels[1], kernels[1]))
    )
    assert found["first"][1] == pytest.approx(xy / np.sqrt(xx * yy), abs=1e-4)
    pairs = [[by_definition(a, b, True) for a, b in ((k, m), (k, k), (m, m))] for k, m in zip(*kernels, strict=True)]
    ratios = np.average([xy / np.sqrt(xx * yy) for xy, xx, yy in pairs], weights=np.diff(cuts))
    assert abs(ratios - xy / np.sqrt(xx * yy)) > 1e-3


def test_steps_of_a_loop_are_apart_and_heads_together():
    net, x = networks.network("towers"), networks.data(16, 5)
    models = [net.variables, networks.shuffle(net.graph, net.variables, 3)[0], net.another(1)]
    found = collect(net.apply, net.graph, models, [(x, None)], [MinibatchCKA()])[MinibatchCKA]
    assert {name: value.shape for name, value in found.items()} == {"embed": (3,), "layers/into#2": (3, 3)}
    np.testing.assert_allclose(found["layers/into#2"][:2], 1, atol=1e-5)  # towers and units in another order are the same
    assert (found["layers/into#2"][2] < 0.95).all()


def test_a_model_that_is_not_finite_has_no_similarity(mlp):
    net, x, models = mlp
    broken = models[1] | {"first": models[1]["first"] | {"bias": models[1]["first"]["bias"].at[0].set(jnp.nan)}}
    found = collect(net.apply, net.graph, [models[0], broken], [(x, None)], [MinibatchCKA()])[MinibatchCKA]
    for values in found.values():
        np.testing.assert_array_equal(jnp.isnan(values), [False, True])


def test_a_batch_that_is_too_small_is_named(mlp):
    net, x, models = mlp
    with pytest.raises(ValueError, match="at least four samples in every batch, got 3 of node 'first'"):
        collect(net.apply, net.graph, models, [(x[:3], None)], [MinibatchCKA()])
