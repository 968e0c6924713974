"""CCA against the properties that follow from its formula."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import CCA, NodeMoments, Procrustes
from alignment.procrustes import polar
from tests.alignment import networks
from tests.alignment.test_activation_matching import moments
from tests.alignment.test_moments import collect
from tests.alignment.test_procrustes import rotation

N = 5
RNG = np.random.default_rng(0)
X = RNG.standard_normal((400, N)) @ RNG.standard_normal((N, N)) + RNG.standard_normal(N)  # full rank, correlated, not centred
GAMMAS = (0.0, 1e-3, 0.1, 10.0)


def fit(x, y, method=None):
    """The map of the second model's features onto the first's, and their moments."""
    m = moments(np.float32(x), np.float32(y))
    graph = networks.network("mlp").graph
    method = method or CCA(gamma=0.0)
    theta = method.init(graph, [None, None], stats={NodeMoments: {"n": m}})
    return method.maps(theta, graph)[1]["n"], m


def test_an_invertible_map_is_inverted_exactly_without_regularisation():
    a = RNG.standard_normal((N, N)) + 2 * np.eye(N)
    m, _ = fit(X, X @ a.T)
    np.testing.assert_allclose(m.push @ a, np.eye(N), atol=1e-3)
    np.testing.assert_allclose(m.pull, a, atol=2e-3)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("scale", ["relative", "absolute"])
def test_an_orthogonal_map_is_transposed_for_every_gamma(gamma, scale):
    q = rotation(N)
    m, _ = fit(X, X @ q.T, CCA(gamma, scale))
    np.testing.assert_allclose(m.push, q.T, atol=1e-3)
    np.testing.assert_allclose(m.pull, q, atol=1e-3)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_identical_features_stay(gamma):
    m, _ = fit(X, X, CCA(gamma))
    np.testing.assert_allclose(m.push, np.eye(N), atol=1e-4)


def test_regularisation_breaks_exactness_for_other_maps():
    """What gamma costs, so that the tests at gamma zero are not passed by ignoring it."""
    a = RNG.standard_normal((N, N)) + 2 * np.eye(N)
    m, _ = fit(X, X @ a.T, CCA(1.0))
    assert np.abs(m.push @ a - np.eye(N)).max() > 0.05


@pytest.mark.parametrize("scale", ["relative", "absolute"])
def test_large_gamma_tends_to_procrustes(scale):
    y = X @ RNG.standard_normal((N, N)) + 0.3 * RNG.standard_normal(X.shape)
    q, m = fit(X, y, Procrustes())
    np.testing.assert_allclose(q.push, polar(np.asarray(m.cross[1])), atol=1e-5)
    ratio = 1.0 if scale == "relative" else 0.0
    far, near = fit(X, y, CCA(1e6, scale))[0], fit(X, y, CCA(0.1, scale))[0]
    size = np.sqrt(np.trace(m.covariance[0]) / np.trace(m.covariance[1])) if ratio else 1.0  # relative gammas differ in size
    np.testing.assert_allclose(far.push / size, q.push, atol=1e-3)
    assert np.abs(near.push / size - q.push).max() > 0.01


@pytest.mark.parametrize("gamma", GAMMAS)
def test_pull_is_the_inverse_of_push(gamma):
    y = np.tanh(X @ RNG.standard_normal((N, N))) + 0.3 * RNG.standard_normal(X.shape)
    m, _ = fit(X, y, CCA(gamma))
    np.testing.assert_allclose(m.push @ m.pull, np.eye(N), atol=1e-3)


def test_aligned_features_have_the_covariance_of_the_reference():
    y = np.tanh(X @ RNG.standard_normal((N, N))) + 0.3 * RNG.standard_normal(X.shape)
    m, s = fit(X, y)
    np.testing.assert_allclose(m.push @ s.covariance[1] @ m.push.T, s.covariance[0], atol=1e-3 * float(s.covariance[0].max()))


def test_aligned_features_correlate_as_much_as_any_linear_map_allows():
    """The sum of canonical correlations, computed the textbook way."""
    y = X @ RNG.standard_normal((N, N)) + RNG.standard_normal(X.shape)
    m, s = fit(X, y)

    def whiten(c):
        values, vectors = np.linalg.eigh(np.asarray(c, np.float64))
        return (vectors / np.sqrt(values)) @ vectors.T

    white = whiten(s.covariance[0])
    canonical = np.linalg.svd(white @ s.cross[1] @ whiten(s.covariance[1]), compute_uv=False)
    aligned = white @ s.cross[1] @ m.push.T @ white
    assert np.trace(aligned) == pytest.approx(canonical.sum(), rel=1e-3)


def test_the_relative_gamma_does_not_see_the_unit_of_measurement():
    y = np.tanh(X) + 0.3 * RNG.standard_normal(X.shape)
    for scale, agrees in (("relative", True), ("absolute", False)):
        small, large = fit(X, y, CCA(0.1, scale))[0], fit(X * 30, y * 30, CCA(0.1, scale))[0]
        assert np.allclose(small.push, large.push, atol=1e-3) == agrees


# --------------------------------------------------------------------------------------------------------- dead units


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 10.0])
def test_dead_units_are_mapped_to_dead_units(gamma):
    """One dead unit in each model, in other places: live features must not leak into the dead one nor come from it."""
    q = rotation(N)
    x = np.insert(X, 2, 0.0, axis=1)
    y = np.insert(X @ q.T, 4, 0.0, axis=1)
    m, _ = fit(x, y, CCA(gamma))
    live_x, live_y = [0, 1, 3, 4, 5], [0, 1, 2, 3, 5]
    np.testing.assert_allclose(np.asarray(m.push)[np.ix_(live_x, live_y)], q.T, atol=1e-3)
    assert np.abs(np.asarray(m.push)[2, live_y]).max() < 1e-5
    assert np.abs(np.asarray(m.push)[live_x, 4]).max() < 1e-5
    assert abs(m.push[2, 4]) > 0.1  # still invertible


def test_dead_units_do_not_depend_on_rounding():
    x, y = (np.insert(z, [1, 3], 0.0, axis=1) for z in (X, np.tanh(X)))
    noise = 1e-9 * np.random.default_rng(1).standard_normal(x.shape)
    np.testing.assert_allclose(fit(x, y, CCA(0.1))[0].push, fit(x + noise, y - noise, CCA(0.1))[0].push, atol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("dead", [(True, False), (False, True), (True, True)])
def test_a_node_that_is_dead_as_a_whole_gives_a_moderate_map(gamma, dead):
    """Nothing can be learned from it, but one dead layer must not put 1e15 (or NaN) into the weights."""
    x, y = (np.zeros_like(X) if d else X for d in dead)
    m, _ = fit(x, y, CCA(gamma))
    assert np.isfinite(m.push).all() and np.isfinite(m.pull).all()
    assert max(np.abs(m.push).max(), np.abs(m.pull).max()) < 1e3


# ----------------------------------------------------------------------------------------------------------- networks


def test_an_invertible_reparametrisation_of_a_linear_network_is_undone():
    """A merged with an invertible reparametrisation of A is A's function (full rank: no node is wider than the inputs)."""

    def apply(v, x):
        return networks.dense(v["out"], networks.dense(v["second"], networks.dense(v["first"], x)))

    sizes = {"first": (5, 5), "second": (5, 4), "out": (4, 3)}
    variables = {k: {"kernel": networks.data(*s, seed=1), "bias": networks.data(s[1])} for k, s in sizes.items()}
    x = networks.data(64, 5)
    graph = alignment.trace(apply, variables, x)
    maps = {n: alignment.general(networks.data(k, k, seed=k) + 2 * jnp.eye(k)) for n, k in (("first", 5), ("second", 4))}
    other = alignment.transport(graph, maps, variables)
    statistic = NodeMoments()
    stats = {NodeMoments: statistic.finalise(statistic.measure(apply, graph, [variables, other], (x, None)))}
    aligned = alignment.align(CCA(gamma=0.0), graph, [variables, other], stats=stats)
    merged = {k: {n: (aligned[0][k][n] + aligned[1][k][n]) / 2 for n in variables[k]} for k in variables}
    gap = jnp.abs(apply(merged, x) - apply(variables, x)).max() / jnp.abs(apply(variables, x)).max()
    assert float(gap) < 1e-3
    plain = {k: {n: (variables[k][n] + other[k][n]) / 2 for n in variables[k]} for k in variables}
    assert float(jnp.abs(apply(plain, x) - apply(variables, x)).max()) > 0.1  # without aligning it is another function


@pytest.mark.parametrize("node", ["query#2", "value"])
def test_linear_nodes_of_attention_are_recovered(node):
    """Queries and keys move by inverse transposes of each other; the map must be fitted on the features that push moves."""
    net = networks.network("attention")
    m = alignment.maps.random_element(net.graph.nodes[node], jax.random.key(1))
    moved = alignment.transport(net.graph, {node: m}, net.variables)
    stats = {NodeMoments: collect("attention", [net.variables, moved], [networks.data(12, 6, 5)])}
    method = CCA(gamma=0.0)
    found = method.init(net.graph, [net.variables, moved], stats=stats)[1][node]
    np.testing.assert_allclose(found.push @ m.push, np.eye(len(m.push)), atol=1e-2)


@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet"])
def test_between_relus_the_map_is_an_approximation_and_discrepancy_says_so(name):
    net = networks.network(name)
    models = [net.variables, net.another(1)]
    batches = [networks.data(64, 5)] if name == "mlp" else [networks.data(3, 8, 8, 3, seed=s) for s in range(2)]
    stats = {NodeMoments: collect(name, models, batches)}
    maps = CCA().maps(CCA().init(net.graph, models, stats=stats), net.graph)
    assert alignment.discrepancy(net.apply, net.graph, maps[1], models[1], net.inputs) > 1e-2
    assert alignment.discrepancy(net.apply, net.graph, maps[0], models[0], net.inputs) == 0  # the reference is not moved


def test_bad_hyper_parameters_are_refused():
    with pytest.raises(ValueError, match="gamma must not be negative, got -1"):
        CCA(gamma=-1)
    with pytest.raises(ValueError, match="gamma must not be negative, got nan"):
        CCA(gamma=float("nan"))
    with pytest.raises(ValueError, match=r"scale must be .*, got 'both'"):
        CCA(scale="both")


def test_needs_and_printing():
    """Frozen dataclasses: they go into the record of a merge as they print."""
    assert CCA().needs == (NodeMoments,)
    assert repr(CCA()) == "CCA(gamma=0.1, scale='relative')"
    chex.assert_equal(CCA(), CCA(0.1, "relative"))
    assert hash(CCA()) == hash(CCA())
