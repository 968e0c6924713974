"""Matchers against the published loop, written out here, and against what follows from their rules."""

import itertools

import numpy as np
import pytest

from alignment.methods import matchers

ALPHAS, BETAS = (0.0, 1e-4, 0.3, 1.0), (0.0, 0.125, 1.0)


def correlations(seed, models, n, decimals=5):
    """Of random features with some structure; few decimals make ties."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((models * n, 6)) @ rng.standard_normal((6, 50)) + rng.standard_normal((models * n, 50))
    return np.round(np.corrcoef(x), decimals)


def published(correlation, models, width, alpha, beta):
    """The loop of the published code on whole matrices, with the budget looked at first; None where no pair is left."""
    sims, columns = correlation.copy(), np.eye(len(correlation))
    np.fill_diagonal(sims, -np.inf)
    origin = np.repeat(np.arange(models), len(sims) // models)
    budget = np.full(models, int((len(sims) - width) // models * beta + 1e-4))

    def kill(model):
        sims[np.ix_(origin == model, origin == model)] = -np.inf

    for model in np.flatnonzero(budget <= 0):
        kill(model)
    while columns.shape[1] > width:
        if sims.max() == -np.inf:
            return None
        row, col = sorted(np.unravel_index(sims.argmax(), sims.shape))
        columns[:, row] += columns[:, col]
        least = np.minimum(sims[row], sims[col])
        sims[row] = sims[:, row] = alpha * least if alpha > 0 else -np.inf
        same, model = origin[row] == origin[col], origin[row]
        columns, origin = np.delete(columns, col, 1), np.delete(origin, col)
        sims = np.delete(np.delete(sims, col, 0), col, 1)
        if same:
            budget[model] -= 1
            if budget[model] <= 0:
                kill(model)
    return columns


@pytest.mark.parametrize(("models", "width"), [(1, 8), (2, 12), (2, 15), (2, 9), (3, 12), (3, 20), (4, 12)])
def test_greedy_is_the_published_loop(models, width):
    compared = 0
    for alpha, beta, decimals, seed in itertools.product(ALPHAS, BETAS, (1, 5), range(4)):
        scores = correlations(seed, models, 12, decimals)
        if 12 - matchers.inside_budget(12 * models, models, width, beta) > width:
            continue
        expected = published(scores, models, width, alpha, beta)
        slots = matchers.greedy(scores, models, width, alpha, beta)
        assert sorted(set(slots)) == list(range(width))
        if expected is not None:
            compared += 1
            np.testing.assert_array_equal(np.eye(width)[slots], expected)
    assert compared >= 24


@pytest.mark.parametrize("models", [2, 3, 4])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_without_budget_every_slot_has_one_unit_of_each_model(models, alpha):
    """Also where the greedy choices leave no pair: at alpha = 0 from three models on they always do."""
    stuck = 0
    for seed in range(6):
        scores = correlations(seed, models, 10)
        stuck += published(scores, models, 10, alpha, 0.0) is None
        slots = matchers.greedy(scores, models, 10, alpha, 0.0).reshape(models, 10)
        np.testing.assert_array_equal(np.sort(slots, -1), np.broadcast_to(np.arange(10), (models, 10)))
        np.testing.assert_array_equal(slots[0], np.arange(10))
    assert bool(stuck) == (models > 2)


def test_the_budget_bounds_the_pairs_inside_a_model():
    for seed, beta in itertools.product(range(5), (0.1, 0.3, 0.5)):
        slots = matchers.greedy(correlations(seed, 2, 20), 2, 20, 0.0, beta).reshape(2, 20)
        inside = [20 - len(set(own)) for own in slots]
        assert max(inside) <= int(20 * beta) // 1
        assert matchers.inside_budget(40, 2, 20, beta) == int(10 * beta + 1e-4)


def test_a_small_beta_without_a_whole_match_allows_none():
    scores = correlations(0, 2, 10)
    np.testing.assert_array_equal(matchers.greedy(scores, 2, 10, 1.0, 0.19), matchers.greedy(scores, 2, 10, 1.0, 0.0))


def test_ties_go_to_the_first_pair():
    np.testing.assert_array_equal(matchers.greedy(np.ones((6, 6)), 2, 3, 0.0, 0.0), [0, 1, 2, 0, 1, 2])


def test_the_exact_matcher_joins_its_best_pairs_first():
    scores = correlations(0, 2, 8)
    every, some = (matchers.exact(scores, width) for width in (8, 11))
    pairs = [np.flatnonzero(every == slot) for slot in range(8)]
    best = sorted(pairs, key=lambda pair: -scores[tuple(pair)])[:5]
    assert [list(np.flatnonzero(some == s)) for s in range(11) if (some == s).sum() == 2] == sorted(map(list, best))


def test_k_means_fills_every_cluster_and_finds_planted_ones():
    rng = np.random.default_rng(0)
    planted = rng.integers(0, 6, 24)
    planted[:6] = np.arange(6)
    x = rng.standard_normal((6, 100))[planted] + 0.1 * rng.standard_normal((24, 100))
    np.testing.assert_array_equal(matchers.k_means(np.corrcoef(x), 6), planted)
    for width in (1, 5, 23, 24):
        assert set(matchers.k_means(correlations(1, 2, 12), width)) == set(range(width))
    assert set(matchers.k_means(np.ones((8, 8)), 5)) == set(range(5))


def test_an_empty_cluster_takes_the_farthest_of_those_that_share_one():
    distance = np.zeros((5, 4))
    distance[np.arange(5), [0, 0, 1, 2, 2]] = [1, 2, 9, 3, 4]  # the third is far, and alone
    assert matchers._filled(np.array([0, 0, 1, 2, 2]), distance, 4).tolist() == [0, 0, 1, 2, 3]
