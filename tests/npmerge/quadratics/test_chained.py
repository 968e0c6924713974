"""RegMean++ and Chain of Merges: layer by layer behind merged layers, against float64."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import trace
from npmerge import ChainOfMerges, Examples, InputGram, RegMean, RegMeanPlusPlus, collect, collect_each, stack_models
from tests.npmerge.toys import SIZES, apply, array, batch, dense, float64, variables

MODELS = [variables(k) for k in range(3)]
STACK = stack_models(MODELS)
TASKS = [[batch(10 + k, 9), batch(20 + k, 7)] for k in range(3)]


@pytest.fixture(scope="module")
def graph():
    return trace(apply, MODELS[0], jnp.zeros((2, SIZES[0])))


@pytest.fixture(scope="module")
def stats(graph):
    return collect_each(apply, graph, MODELS, TASKS, [RegMean(), RegMeanPlusPlus(), ChainOfMerges()])


def merged(merge, stats, stack=STACK):
    theta = merge.init(stack, stats=stats)
    return float64(jax.jit(merge.apply)(theta, stack))


def features(v, task) -> np.ndarray:
    """What the second layer reads."""
    x = np.concatenate([np.asarray(x, np.float64) for x, _ in task])
    return np.maximum(x @ v["first"]["kernel"] + v["first"]["bias"], 0)


def test_the_first_layer_is_that_of_regression_mean(stats):
    expected = merged(RegMean(1.0), stats)["first"]
    for merge in (RegMeanPlusPlus(1.0), ChainOfMerges()):
        chex.assert_trees_all_close(merged(merge, stats)["first"], expected, rtol=1e-6)


def test_later_layers_see_merged_ones(stats):
    plus, chain = merged(RegMeanPlusPlus(1.0, 0.0), stats), merged(ChainOfMerges(0.0), stats)
    kernels = [float64(m)["out"]["kernel"] for m in MODELS]
    z = [features(plus, task) for task in TASKS]
    x = [features(float64(m), task) for m, task in zip(MODELS, TASKS, strict=True)]
    for found, targets in ((plus, z), (chain, x)):
        y = np.concatenate([t @ w for t, w in zip(targets, kernels, strict=True)])
        expected = np.linalg.lstsq(np.concatenate(z), y, rcond=None)[0]
        np.testing.assert_allclose(found["out"]["kernel"], expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found["out"]["bias"], np.mean([float64(m)["out"]["bias"] for m in MODELS], 0), rtol=1e-6)


def test_within_a_block_models_keep_their_own_weights(graph, stats):
    """One block of everything is RegMean."""
    assert set(stats) == {InputGram, Examples}
    chex.assert_trees_all_close(
        merged(RegMeanPlusPlus(0.9, pattern="^"), stats), merged(RegMean(0.9), stats), rtol=1e-4, atol=1e-5
    )


def test_padding_is_left_out(graph):
    x, y = batch(3, 12)
    padded = [(x, y.at[4:].set(-1))]
    found = collect(apply, graph, MODELS, padded, [RegMeanPlusPlus(), RegMean()])
    short = collect(apply, graph, MODELS, [(x[:4], y[:4])], [Examples])
    expected = merged(RegMeanPlusPlus(0.5), short)
    chex.assert_trees_all_close(merged(RegMeanPlusPlus(0.5), found), expected, rtol=1e-4, atol=1e-5)


def test_copies_behind_a_loop_stay_as_they_are():
    """Steps of a loop are measured in the model itself; with equal models no layer has anything to correct."""

    def looped(v, x):
        h = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, v["loop"])[0]
        return dense(v["out"], h)

    model = {"loop": array(1, 2, 4, 4), "out": {"kernel": array(2, 4, 3), "bias": array(3, 3)}}
    stack = stack_models([model] * 2)
    run = collect(looped, trace(looped, model, array(4, 2, 4)), [model] * 2, [(array(5, 30, 4), None)], [Examples])
    for merge in (RegMeanPlusPlus(), ChainOfMerges()):
        chex.assert_trees_all_close(merged(merge, run, stack), float64(model), rtol=1e-6)


@pytest.mark.parametrize(("merge", "kinds"), [(RegMeanPlusPlus(), 1), (ChainOfMerges(), 2)])
def test_no_more_matrices_are_summed_than_are_solved_for(stats, merge, kinds):
    """For each model and layer a count, X^T X and, where models correct what they read, one more; and what they solve to."""
    small = {Examples: dataclasses.replace(stats[Examples], memory_limit=1.0)}
    matrices = 2 * len(MODELS) * sum(4 + 4 * kinds * rows**2 for rows in SIZES[:2])
    with pytest.raises(ValueError, match=f"would hold .* GB, {matrices / 1e9:.3g} GB of matrices"):
        merge(STACK, stats=small)


def test_data_of_other_models_are_refused(graph, stats):
    run = collect(apply, graph, MODELS[:2], TASKS[0], [Examples])
    with pytest.raises(ValueError, match="ChainOfMerges needs data for each model: got them for 2 of 3 models"):
        ChainOfMerges()(STACK, stats=run)
    with pytest.raises(ValueError, match=r"variables do not fit the graph at 'first/bias'"):
        RegMeanPlusPlus()(stack_models([{"w": jnp.ones(3)}] * 3), stats=stats)
    for bad in ({"scale": 2}, {"ridge": -1}, {"pattern": "("}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            RegMeanPlusPlus(**bad)


@pytest.mark.parametrize("pattern", [b"(.*)", "(", 3, None], ids=repr)
def test_a_pattern_is_a_regular_expression_of_text(pattern):
    with pytest.raises(ValueError, match="pattern must be a regular expression, got"):
        RegMeanPlusPlus(pattern=pattern)
