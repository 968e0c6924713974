"""The greedy soup against the recipe written out on lists of numbers, and its ties."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npmerge import GreedySoup, Learned, PerModel, Simplex, stack_models
from tests.npmerge.toys import normal

MODELS = [{"w": normal(k, 3).astype(np.float32), "mean": normal(9 + k, 2).astype(np.float32)} for k in range(4)]


def score_of(target: np.ndarray):
    return lambda variables: -float(np.square(np.asarray(variables["w"], np.float64) - target).sum())


def recipe64(score, models) -> list[int]:
    """Recipe 1: `if ValAcc(average(ingredients and theta_i)) >= ValAcc(average(ingredients))`, best models first."""

    def value(chosen):
        return score({"w": np.mean([models[k]["w"] for k in chosen], axis=0, dtype=np.float64)})

    order = sorted(range(len(models)), key=lambda k: value([k]), reverse=True)
    soup = order[:1]
    for k in order[1:]:
        soup = [*soup, k] if value([*soup, k]) >= value(soup) else soup
    return soup


@pytest.mark.parametrize("seed", range(8))
def test_against_the_recipe(seed):
    score = score_of(0.5 * normal(50 + seed, 3))
    c = np.asarray(GreedySoup(score).init(stack_models(MODELS))["w"]).ravel()
    chosen = recipe64(score, MODELS)
    assert set(np.flatnonzero(c)) == set(chosen)
    np.testing.assert_allclose(c[chosen], 1 / len(chosen), rtol=1e-6)


def test_soups_of_all_sizes_are_among_those():
    assert {len(recipe64(score_of(0.5 * normal(50 + seed, 3)), MODELS)) for seed in range(8)} >= {1, 2, 3}


def test_between_the_best_model_and_the_best_mean():
    """At least as good as the best model, at most as the best mean of any models."""
    for seed in range(4):
        score, models = score_of(normal(70 + seed, 3)), MODELS[:3]
        merged = score(GreedySoup(score)(stack_models(models)))
        soups = [s for n in (1, 2, 3) for s in itertools.combinations(models, n)]
        best = max(score({"w": np.mean([m["w"] for m in soup], axis=0)}) for soup in soups)
        assert max(map(score, models)) - 1e-6 <= merged <= best + 1e-6


def test_a_tie_is_added_and_equal_models_keep_their_order():
    asked = []

    def constant_score(variables):
        asked.append(float(variables["w"][0]))
        return 1.0

    models = [{"w": jnp.full(1, float(k))} for k in range(3)]
    assert float(GreedySoup(constant_score)(stack_models(models))["w"][0]) == 1.0
    assert asked == pytest.approx([0, 1, 2, 0.5, 1.0])  # each model, then two soups: 2 N - 1


def test_candidates_are_of_the_stored_type_and_their_statistics_are_averaged():
    seen = []

    def score(variables):
        seen.append(variables)
        return 0.0

    GreedySoup(score)(stack_models([jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), m) for m in MODELS[:2]]))
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(seen))
    expected = np.mean([m["mean"] for m in MODELS[:2]], axis=0)
    np.testing.assert_allclose(np.asarray(seen[-1]["mean"], np.float32), expected, rtol=0.02, atol=0.02)


def test_learning_starts_from_the_soup():
    soup = GreedySoup(score_of(np.zeros(3)))
    stack = stack_models(MODELS)
    learned = Learned(soup, PerModel(), Simplex())
    np.testing.assert_allclose(learned(stack)["w"], soup(stack)["w"], atol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="GreedySoup needs a score, a function of the variables, got float"):
        GreedySoup(0.5)

    class Counting(list):
        def __call__(self, variables):
            return 0.5

    with pytest.raises(ValueError, match="GreedySoup needs a score that has a hash, got Counting without one"):
        GreedySoup(Counting())
    stack = stack_models(MODELS)
    with pytest.raises(ValueError, match="GreedySoup needs a score that is one number, got tuple"):
        GreedySoup(lambda variables: (0.5, 1))(stack)
    with pytest.raises(ValueError, match="GreedySoup needs a score that is one number, got str"):
        GreedySoup(lambda variables: "good")(stack)
    with pytest.raises(ValueError, match="GreedySoup needs scores that can be compared, got NaN"):
        GreedySoup(lambda variables: float("nan"))(stack)
