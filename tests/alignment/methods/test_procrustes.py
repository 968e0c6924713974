"""Rotations from activations, and the polar factor."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
import npmerge
from alignment import NodeMoments, Procrustes
from alignment.orthogonal import polar
from tests.alignment import networks
from tests.alignment.activations.test_moments import collect


def rotation(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def test_polar_of_a_symmetric_positive_matrix_times_a_rotation_is_the_rotation():
    q, a = rotation(5), np.random.default_rng(1).standard_normal((5, 5))
    np.testing.assert_allclose(polar((a @ a.T + np.eye(5)) @ q), q, atol=1e-12)


def test_polar_maximises_the_inner_product_over_rotations():
    matrix = np.random.default_rng(2).standard_normal((4, 4))
    best = np.sum(polar(matrix) * matrix)
    assert best == pytest.approx(np.linalg.svd(matrix, compute_uv=False).sum())
    assert all(np.sum(rotation(4, seed) * matrix) <= best for seed in range(50))


def test_polar_completes_a_null_space_with_the_identity():
    """Dead units: on their common null space the factor is the identity, whatever basis the solver returns."""
    matrix = np.zeros((5, 5))
    matrix[:3, :3] = rotation(3)
    expected = np.eye(5)
    expected[:3, :3] = matrix[:3, :3]
    np.testing.assert_allclose(polar(matrix), expected, atol=1e-12)
    np.testing.assert_allclose(polar(np.zeros((4, 4))), np.eye(4), atol=1e-12)


def test_polar_does_not_depend_on_rounding_in_the_null_space():
    matrix = np.zeros((6, 6))
    matrix[:4, 2:] = rotation(4)
    noise = 1e-12 * np.random.default_rng(3).standard_normal((6, 6))
    np.testing.assert_allclose(polar(matrix + noise), polar(matrix), atol=1e-8)


def test_a_planted_rotation_is_recovered_in_a_linear_network():
    net = networks.network("linear_mlp")
    q = {"first": rotation(8), "second": rotation(7, 1)}
    moved = alignment.transport(net.graph, {n: alignment.orthogonal(jnp.float32(m)) for n, m in q.items()}, net.variables)
    stats = {NodeMoments: collect("linear_mlp", [net.variables, moved], [networks.data(64, 5)])}
    aligned = alignment.align(Procrustes(), net.graph, [net.variables, moved], stats=stats)[1]
    # five inputs span five directions of eight: the function comes back although the idle directions need not
    chex.assert_trees_all_close(net.apply(aligned, net.inputs), net.apply(net.variables, net.inputs), atol=1e-5)
    maps = Procrustes().maps(Procrustes().init(net.graph, [net.variables, moved], stats=stats), net.graph)[1]
    for m in maps.values():
        np.testing.assert_allclose(m.push @ m.push.T, np.eye(len(m.push)), atol=1e-5)
        chex.assert_trees_all_equal(m.pull, m.push.T)


def test_the_reference_keeps_its_variables_and_copies_are_not_moved():
    net = networks.network("mlp")
    models = [net.variables, net.variables]
    stats = {NodeMoments: collect("mlp", models, [networks.data(64, 5)])}
    for aligned in alignment.align(Procrustes(approximate=True), net.graph, models, stats=stats):
        chex.assert_trees_all_close(aligned, net.variables, atol=1e-5)


def test_the_rotation_brings_activations_closer_than_any_permutation():
    net = networks.network("mlp")
    models, x = [net.variables, net.another(1)], networks.data(64, 5)
    moments = collect("mlp", models, [x])
    stats = {NodeMoments: moments}
    procrustes = Procrustes(approximate=True)
    rotated = procrustes.maps(procrustes.init(net.graph, models, stats=stats), net.graph)[1]
    matching = alignment.ActivationMatching()
    permuted = matching.maps(matching.init(net.graph, models, stats=stats), net.graph)[1]
    for node, m in moments.items():
        agreement = {k: float(jnp.sum(maps[node].push * m.cross[1])) for k, maps in (("q", rotated), ("p", permuted))}
        assert agreement["q"] > agreement["p"]


def unit_rms(x):
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-5)


def rms_apply(v, x):
    """A residual stream whose norms have no scale."""
    x = x @ v["embed"]
    return unit_rms(x + unit_rms(x) @ v["mix"]) @ v["head"]


def test_learning_stays_within_the_group():
    """Theta leaves the rotations, its maps do not."""
    variables = {"embed": networks.data(5, 6), "mix": networks.data(6, 6), "head": networks.data(6, 3)}
    x = networks.data(64, 5)
    net = networks.Network("stream", rms_apply, variables, x, None)
    assert [node.group for node in net.graph.nodes.values()] == ["orthogonal"]
    models = [variables, jax.tree.map(lambda w: w[::-1], variables)]
    stats = npmerge.collect(rms_apply, net.graph, models, [(x, None)], [NodeMoments])
    theta = Procrustes().init(net.graph, models, stats=stats)
    for m, v in networks.learned(net, Procrustes(), theta, x, models):
        assert alignment.discrepancy(rms_apply, net.graph, m, v, x) < 1e-4


@pytest.mark.parametrize("method", [Procrustes(approximate=True), alignment.CCA(approximate=True)], ids=["procrustes", "cca"])
def test_running_statistics_under_approximate_maps_are_warned_of(method):
    """A rotated variance may be negative: the network then returns NaN."""
    net = networks.network("resnet")
    models = [net.variables, net.another(1)]
    stats = {NodeMoments: collect("resnet", models, [networks.data(3, 8, 8, 3)])}
    with pytest.warns(
        UserWarning, match=r"running statistics such as .*re-estimate them by npmerge.reset_statistics"
    ) as caught:
        alignment.align(method, net.graph, models, stats=stats)
    assert len(caught) == 1
    assert caught[0].filename == __file__
