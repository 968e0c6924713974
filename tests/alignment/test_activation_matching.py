"""Permutations from activations."""

import itertools

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import ActivationMatching, Moments, NodeMoments
from alignment.activation_matching import correlation
from alignment.assignment import assign
from tests.alignment import networks
from tests.alignment.test_moments import collect

BATCHES = {"mlp": [networks.data(16, 5, seed=s) for s in range(3)]}
IMAGES = [networks.data(3, 8, 8, 3, seed=s) for s in range(6)]


@pytest.mark.parametrize("name", ["mlp", "resnet", "option_a", "vgg"])
def test_a_planted_permutation_is_recovered(name):
    net = networks.network(name)
    moved, index = networks.shuffle(net.graph, net.variables, 5)
    models = [net.variables, moved]
    stats = {NodeMoments: collect(name, models, BATCHES.get(name, IMAGES))}
    theta = ActivationMatching().init(net.graph, models, stats=stats)
    chex.assert_trees_all_equal(theta[1], {node: np.argsort(i) for node, i in index.items()})
    same, aligned = alignment.align(ActivationMatching(), net.graph, models, stats=stats)
    chex.assert_trees_all_equal(same, net.variables)
    chex.assert_trees_all_equal(aligned, net.variables)


def test_several_models_are_each_aligned_to_the_first():
    net = networks.network("mlp")
    models = [net.variables, *(networks.shuffle(net.graph, net.variables, seed)[0] for seed in (1, 2))]
    stats = {NodeMoments: collect("mlp", models, BATCHES["mlp"])}
    for aligned in alignment.align(ActivationMatching(), net.graph, models, stats=stats):
        chex.assert_trees_all_equal(aligned, net.variables)


def moments(x, y):
    """Moments of two models' features, by numpy."""
    n = x.shape[1]
    both = np.cov(np.concatenate([x, y], 1).T, bias=True)
    return Moments(
        jnp.float32(len(x)),
        jnp.stack([x.mean(0), y.mean(0)]),
        jnp.float32([both[:n, :n], both[n:, n:]]),
        jnp.float32(both[:n]).reshape(n, 2, n).swapaxes(0, 1),
    )


def test_correlation_is_pearsons_and_zero_for_dead_units():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 50, 4)).astype(np.float32)
    y += x[:, ::-1]
    x[:, 2] = y[:, 1] = 3.0  # dead: constant, not zero
    got = correlation(moments(x, y))[1]
    for i, j in itertools.product(range(4), range(4)):
        expected = 0 if i == 2 or j == 1 else np.corrcoef(x[:, i], y[:, j])[0, 1]
        assert got[i, j] == pytest.approx(expected, abs=1e-5)


def test_matching_ignores_the_scale_of_a_unit():
    """Pearson, not covariance: a loud unit must not win a place that is not its own."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 4)).astype(np.float32)
    y = x[:, [2, 0, 3, 1]] * np.float32([1, 100, 1e-3, 10]) + 0.1 * x.mean(1, keepdims=True)
    net = networks.network("mlp")
    theta = ActivationMatching().init(net.graph, [None, None], stats={NodeMoments: {"n": moments(x, np.float32(y))}})
    assert theta[1]["n"].tolist() == [1, 3, 0, 2]


def test_the_reference_stays_even_with_dead_and_doubled_units():
    """Its own correlation has ties there, but model 0 is the identity by definition."""
    rng = np.random.default_rng(1)
    for seed in range(20):
        x = rng.standard_normal((30, 6)).astype(np.float32)
        x[:, [4, 5]] = x[:, [0, 1]]
        x[:, 2] = 0
        stats = {NodeMoments: {"n": moments(x, rng.standard_normal((30, 6)).astype(np.float32))}}
        theta = ActivationMatching().init(networks.network("mlp").graph, [None, None], stats=stats)
        assert theta[0]["n"].tolist() == list(range(6)), seed


# --------------------------------------------------------------------------------------------------------- assignment


def test_assignment_is_optimal_by_brute_force_even_with_ties():
    """Compared by objective: with ties the permutation itself is arbitrary."""
    for seed in range(20):
        scores = np.random.default_rng(seed).integers(0, 3, (5, 5)).astype(float)
        best = max(sum(scores[i, p[i]] for i in range(5)) for p in itertools.permutations(range(5)))
        index = assign(scores)
        assert sorted(index) == list(range(5))
        assert scores[np.arange(5), index].sum() == best


def test_assignment_is_deterministic():
    scores = np.zeros((6, 6))
    assert (assign(scores) == assign(scores.copy())).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_assignment_refuses_non_finite_scores(bad):
    scores = np.eye(4)
    scores[1, 2] = bad
    with pytest.raises(ValueError, match=r"\(4, 4\).*non-finite"):
        assign(scores)
