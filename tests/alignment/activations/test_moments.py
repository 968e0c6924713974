"""Moments of activations against float64 numpy over all data at once."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import JointMoments, NodeMoments
from alignment.activations.moments import against_reference
from tests.alignment import networks

STATISTIC = NodeMoments()


@functools.cache
def measurer(name):
    """The jitted measurement of one network."""
    net = networks.network(name)
    return jax.jit(lambda models, x: STATISTIC.measure(net.apply, net.graph, models, (x, None)))


def collect(name, models, batches):
    """All batches measured under jit, combined in order and finalised."""
    states = [measurer(name)(models, x) for x in batches]
    return STATISTIC.finalise(functools.reduce(jax.jit(STATISTIC.combine), states))


def reference(name, models, batches):
    """The same in float64 on the host, from features of all data."""
    net = networks.network(name)
    features = [[alignment.capture(net.apply, net.graph, m, x).nodes for x in batches] for m in models]
    found = {}
    for node in net.graph.taps:
        z = np.stack([np.concatenate([flat(net.graph, node, f[node]) for f in each], -2) for each in features])
        mean = z.mean(-2)
        z = z - mean[..., None, :]
        auto = np.einsum("k...ni,k...nj->k...ij", z, z) / z.shape[-2]
        cross = np.einsum("...ni,k...nj->k...ij", z[0], z) / z.shape[-2]
        found[node] = alignment.Moments(np.float64(z.shape[-2]), mean, auto, cross)
    return found


def flat(graph, name, features):
    """Copies along other nodes laid end to end among the units; those along fixed axes stay in front."""
    node, features = graph.nodes[name], np.asarray(features, np.float64)
    for k, index in reversed(list(enumerate(node.index))):
        if index in graph.nodes:
            features = np.concatenate(list(np.moveaxis(features, k, 0)), -1)
    return features


def assert_close(got, expected, rtol):
    """Relative to the largest entry of each array: covariances have entries near zero."""
    assert got.keys() == expected.keys()
    for node in got:
        for field in alignment.Moments._fields:
            a, b = np.asarray(getattr(got[node], field), np.float64), getattr(expected[node], field)
            assert a.shape == np.shape(b)
            assert np.abs(a - b).max() <= rtol * np.abs(b).max(), (node, field)


def test_batches_of_unequal_sizes_give_the_moments_of_all_data():
    net, x = networks.network("mlp"), networks.data(23, 5)
    models = [net.variables, net.another(1)]
    assert_close(collect("mlp", models, [x[:16], x[16:]]), reference("mlp", models, [x[:16], x[16:]]), 1e-5)


def test_images_and_joint_nodes():
    net, x = networks.network("option_a"), networks.IMAGES
    models = [net.variables, net.another(1)]
    got = collect("option_a", models, [x, 2 * x])
    assert_close(got, reference("option_a", models, [x, 2 * x]), 1e-5)
    assert got["params/stem"].samples == 2 * 3 * 64


def test_copies_along_steps_stand_in_front_and_copies_along_nodes_among_the_units():
    """Layers of a scan are the same layers in every model; tower 0 of one may be tower 1 of another."""
    net, x = networks.network("towers"), networks.data(40, 5)
    models = [net.variables, net.another(1)]
    got = collect("towers", models, [x[:16], x[16:24], x[24:40]])
    assert {name: m.covariance.shape for name, m in got.items()} == {"embed": (2, 7, 7), "layers/into#2": (2, 3, 8, 8)}
    assert got["layers/into#2"].samples == 40
    assert got["embed"].samples == 120
    assert_close(got, reference("towers", models, [x[:16], x[16:24], x[24:40]]), 1e-5)
    units = alignment.capture(net.apply, net.graph, models[0], x).nodes["layers/into#2"]
    others = alignment.capture(net.apply, net.graph, models[1], x).nodes["layers/into#2"]
    both = np.cov(np.asarray(units[2, 0, :, 3], np.float64), np.asarray(others[2, 1, :, 1], np.float64), bias=True)
    assert got["layers/into#2"].cross[1, 2, 3, 4 + 1] == pytest.approx(both[0, 1], abs=1e-5)


def test_heads_inside_a_product_and_every_other_tap_of_attention():
    net, x = networks.network("fused_attention"), networks.data(4, 6, 5)
    models = [net.variables, net.another(1)]
    assert_close(collect("fused_attention", models, [x, 2 * x]), reference("fused_attention", models, [x, 2 * x]), 1e-5)


@pytest.mark.parametrize("name", ["option_a", "towers"])
@pytest.mark.parametrize("statistic", [NodeMoments(), JointMoments()], ids=lambda s: type(s).__name__)
def test_examples_that_are_padding_are_left_out(name, statistic):
    """Also where the steps of a loop are samples, which stand in front of the examples."""
    net, x = networks.network(name), networks.IMAGES if name == "option_a" else networks.data(3, 5)
    models, mask = [net.variables, net.another(1)], np.array([True, False, True])
    measure = jax.jit(lambda models, *batch: statistic.measure(net.apply, net.graph, models, batch))
    got = statistic.finalise(measure(models, x.at[1].set(1e3), None, mask))
    chex.assert_trees_all_close(got, statistic.finalise(measure(models, x[mask], None)), rtol=1e-4, atol=1e-5)
    nothing = measure(models, x, None, ~mask & mask)
    chex.assert_trees_all_close(
        statistic.combine(nothing, measure(models, x[mask], None)), measure(models, x[mask], None), rtol=1e-6, atol=1e-6
    )
    chex.assert_tree_all_finite(statistic.finalise(statistic.combine(nothing, nothing)))


def test_positions_that_are_padding_are_left_out():
    """Heads are told apart by what they attend to: their samples are pairs of positions."""
    net, x = networks.network("fused_attention"), networks.data(4, 6, 5)
    mask = np.arange(6) < np.array([6, 2, 0, 3])[:, None]
    got = STATISTIC.finalise(STATISTIC.measure(net.apply, net.graph, [net.variables], (x, None, mask)))
    features = alignment.capture(net.apply, net.graph, net.variables, x).nodes
    pairs = mask[:, :, None] & mask[:, None, :]
    assert got.keys() == features.keys()
    for node, moments in got.items():
        counts = (pairs if node == "qkv#1" else mask).ravel()
        z = flat(net.graph, node, features[node])[..., counts, :]
        assert moments.samples == (36 + 4 + 9 if node == "qkv#1" else 11)
        np.testing.assert_allclose(moments.mean[0], z.mean(-2), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moments.covariance[0], np.cov(z.T, bias=True), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"the mask has 4 positions, but node '.*' has 6 samples of an example"):
        STATISTIC.measure(net.apply, net.graph, [net.variables], (x, None, mask[:, :4]))


def test_a_large_mean_does_not_cancel():
    """Moments as sums of squares would lose all digits: variance 1 beside a squared mean of 1e8."""
    x = networks.data(60, 4)

    def apply(v, x):
        h = x @ v["a"]
        return (h + jnp.broadcast_to(v["offset"], h.shape)) @ v["b"]

    variables = {"a": networks.data(4, 5), "offset": jnp.full(5, 1e4), "b": networks.data(5, 3)}
    graph = alignment.trace(apply, variables, x)
    # what float32 can know: the features themselves, rounded at 1e4 * 2^-24
    measure = jax.jit(lambda x: STATISTIC.measure(apply, graph, [variables], (x, None)))
    states = [measure(x[a:b]) for a, b in ((0, 20), (20, 40), (40, 60))]
    got = STATISTIC.finalise(functools.reduce(jax.jit(STATISTIC.combine), states))["a"]
    z = np.asarray(alignment.capture(apply, graph, variables, x).nodes["a"], np.float64)
    assert abs(z.mean()) > 9e3
    np.testing.assert_allclose(got.covariance[0], np.cov(z.T, bias=True), atol=2e-3 * z.var(0).max())


def test_combining_is_associative_and_commutative():
    net, x = networks.network("mlp"), networks.data(48, 5)
    models = [net.variables, net.another(1)]
    a, b, c = (measurer("mlp")(models, x[i : i + 16]) for i in (0, 16, 32))
    left = STATISTIC.combine(STATISTIC.combine(a, b), c)
    chex.assert_trees_all_close(left, STATISTIC.combine(a, STATISTIC.combine(b, c)), rtol=1e-5, atol=1e-4)
    chex.assert_trees_all_close(left, STATISTIC.combine(STATISTIC.combine(c, a), b), rtol=1e-5, atol=1e-4)


def test_rows_of_the_cross_covariance_are_model_0():
    net, x = networks.network("mlp"), networks.data(16, 5)
    models = [net.variables, net.another(1)]
    got = collect("mlp", models, [x])["first"]
    features = [np.asarray(alignment.capture(net.apply, net.graph, m, x).nodes["first"], np.float64) for m in models]
    both = np.cov(features[0].T, features[1].T, bias=True)
    np.testing.assert_allclose(got.cross[1], both[:8, 8:], atol=1e-5)
    np.testing.assert_allclose(got.cross[0], got.covariance[0], atol=1e-6)


@pytest.mark.parametrize(("name", "shape"), [("towers", (40, 5)), ("fused_attention", (4, 6, 5))])
def test_joint_moments_hold_those_against_the_reference(name, shape):
    net, x = networks.network(name), networks.data(*shape)
    models = [net.variables, net.another(1), net.another(2)]
    joint = JointMoments()
    measure = jax.jit(lambda models, x: joint.measure(net.apply, net.graph, models, (x, None)))
    state = joint.combine(measure(models, x), measure(models, 2 * x))
    got = {node: against_reference(m, 3) for node, m in joint.finalise(state).items()}
    assert_close(got, reference(name, models, [x, 2 * x]), 1e-5)


@pytest.mark.parametrize("method", [alignment.ActivationMatching(), alignment.Procrustes(), alignment.CCA()])
def test_missing_statistics_are_named(method):
    net = networks.network("mlp")
    with pytest.raises(ValueError, match=f"{type(method).__name__} needs activations"):
        alignment.align(method, net.graph, [net.variables, net.another(1)])


@pytest.mark.parametrize("method", [alignment.ActivationMatching(), alignment.Procrustes(), alignment.CCA()])
def test_statistics_of_another_number_of_models_are_refused(method):
    net = networks.network("mlp")
    stats = {NodeMoments: collect("mlp", [net.variables, net.another(1)], [networks.data(16, 5)])}
    with pytest.raises(ValueError, match="got 3 models, but the statistics are of 2"):
        alignment.align(method, net.graph, [net.variables] * 3, stats=stats)
