"""Successive pairs: from the average of all models, by coefficients whose product is each model's share."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from npmerge import (
    Average,
    CrossEntropy,
    PerLayer,
    PerParameter,
    PerTensor,
    combine,
    fit,
    np_merge,
    stack_models,
    successive,
    weight_space,
)
from tests.npmerge.toys import apply, batch, float64, permuted, variables

ADAM = optax.adam(0.3)
BATCHES = [batch(k) for k in range(3)]
MODELS = [variables(k) for k in range(4)]


def merged(models=MODELS, *, steps=3, **options):
    return successive(models, apply, CrossEntropy(), BATCHES, ADAM, steps=steps, **options)


@pytest.mark.parametrize("n", [2, 3, 32])
@pytest.mark.parametrize("granularity", [PerParameter(), PerTensor()], ids=str)
def test_zero_steps_are_the_average(n, granularity):
    models = [variables(k) for k in range(n)]
    order = np.random.default_rng(n).permutation(n).tolist()
    found = merged(models, steps=0, order=order, granularity=granularity)
    chex.assert_trees_all_close(found.network, Average()(stack_models(models)), rtol=1e-6, atol=1e-6)
    jax.tree.map(lambda c: np.testing.assert_allclose(c, 1 / n, rtol=2e-6), found.shares)


def test_latents_start_at_the_logit_of_the_share_of_the_models_before():
    for k, turn in enumerate(merged(steps=0).turns, 2):
        share = (k - 1) / k
        jax.tree.map(lambda x, s=share: np.testing.assert_allclose(x, np.log(s / (1 - s)), rtol=1e-6, atol=1e-7), turn.theta)


def test_two_models_are_np_merge():
    """One pair is the merge of the paper's first part, step for step."""
    stack = stack_models(MODELS[:2])
    loss = weight_space(np_merge(), apply, CrossEntropy())
    joint = fit(np_merge().init(stack), loss, stack, BATCHES, ADAM, steps=5)
    found = merged(MODELS[:2], steps=5)
    chex.assert_trees_all_close(found.turns[0].theta, joint.theta, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(found.network, np_merge().apply(joint.theta, stack), rtol=1e-6, atol=1e-6)


def test_the_network_is_the_chain_written_out_in_float64():
    found = merged(order=[2, 0, 3, 1])
    expected, *others = (float64(MODELS[k]) for k in (2, 0, 3, 1))
    for turn, other in zip(found.turns, others, strict=True):
        a = {name: 1 / (1 + np.exp(-np.asarray(x[0], np.float64))) for name, x in turn.theta.items()}
        expected = {
            layer: {
                leaf: a[f"{layer}/{leaf}"] * x + (1 - a[f"{layer}/{leaf}"]) * other[layer][leaf] for leaf, x in part.items()
            }
            for layer, part in expected.items()
        }
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found.network, expected)


@pytest.mark.parametrize("granularity", [PerParameter(), PerLayer()], ids=str)
def test_shares_sum_to_one_and_are_one_linear_merge(granularity):
    found = merged(order=[1, 3, 0, 2], granularity=granularity)
    jax.tree.map(lambda c: np.testing.assert_allclose(c.sum(0), 1, rtol=1e-5), found.shares)
    chex.assert_trees_all_close(combine(found.shares, stack_models(MODELS)), found.network, rtol=1e-5, atol=1e-6)
    spread = max(float(np.ptp(c)) for c in jax.tree.leaves(found.shares))
    assert spread > 0.01
    assert found.shares["out"]["kernel"].shape == ((4, 6, 3) if granularity == PerParameter() else (4, 1, 1))


def test_the_order_is_that_of_merging():
    order = [2, 0, 3, 1]
    found, sorted_before = merged(order=order), merged([MODELS[k] for k in order])
    chex.assert_trees_all_equal(found.network, sorted_before.network)
    chex.assert_trees_all_equal(jax.tree.map(lambda c: c[order], found.shares), sorted_before.shares)
    other = merged().network
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (found.network, other)), strict=True)) > 1e-3


def test_equal_models_stay_what_they_are():
    found = merged([MODELS[0]] * 3)
    chex.assert_trees_all_close(found.network, MODELS[0], rtol=1e-6, atol=1e-6)


def test_no_turn_ends_above_its_start():
    found = merged(steps=20, held_out=iter(BATCHES), every=5)
    for turn in found.turns:
        losses = turn.history.held_out_loss
        assert turn.status == "finished"
        assert losses.min() < losses[0]
    last = np.mean([float(CrossEntropy()(apply, found.network, None, b)) for b in BATCHES])
    np.testing.assert_allclose(last, found.turns[-1].history.held_out_loss.min(), rtol=1e-5)


def test_low_precision_is_rounded_once():
    models = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables(k)) for k in range(9)]
    found = merged(models, steps=0).network
    expected = Average()(stack_models(models))
    chex.assert_trees_all_equal_dtypes(found, expected)
    chex.assert_trees_all_close(*(jax.tree.map(lambda x: x.astype(jnp.float32), t) for t in (found, expected)), rtol=2**-7)


def test_statistics_are_those_of_all_models():
    models = [{"params": m, "batch_stats": {"mean": jnp.full(2, float(k))}} for k, m in enumerate(MODELS)]
    found = successive(models, lambda v, x: apply(v["params"], x), CrossEntropy(), BATCHES, ADAM, steps=2)
    chex.assert_trees_all_close(found.network["batch_stats"]["mean"], jnp.full(2, 1.5))
    np.testing.assert_allclose(found.shares["batch_stats"]["mean"], np.full((4, 1), 0.25))
    chex.assert_trees_all_close(combine(found.shares, stack_models(models)), found.network, rtol=1e-5, atol=1e-6)


def test_models_can_be_brought_onto_the_merge():
    """Copies of one network with other orders of their hidden units: realigned, all turns merge equal networks."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(6) for _ in range(3)]
    models = [MODELS[0], *(permuted(MODELS[0], index) for index in orders)]

    def realign(merge, model):
        distance = jnp.abs(merge["first"]["kernel"][:, :, None] - model["first"]["kernel"][:, None]).sum(0)
        return permuted(model, np.asarray(distance.argmin(1)))

    found = merged(models, realign=realign)
    chex.assert_trees_all_close(found.network, MODELS[0], rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_equal(found.models, (MODELS[0],) * 4)
    with pytest.raises(ValueError, match="model 1 differs from model 0 at 'out/bias'"):
        merged(models, realign=lambda merge, model: {"first": model["first"], "out": model["first"]})


def test_turns_share_one_compiled_step():
    traced = []

    def counting(params, x):
        traced.append(1)
        return apply(params, x)

    for n in (3, 4):
        successive(MODELS[:n], counting, CrossEntropy(), BATCHES, ADAM, steps=2)
        if n == 3:
            before = len(traced)
    assert len(traced) - before <= 3  # shapes of the outputs, once for each pair's checks


def test_what_is_no_chain_is_refused():
    with pytest.raises(ValueError, match="merging in pairs needs two models or more, got 1"):
        merged(MODELS[:1])
    for order in ([0, 1, 2], [0, 1, 2, 2], [1, 2, 3, 4]):
        with pytest.raises(ValueError, match=r"order must name each of the models 0 to 3 once, got \["):
            merged(order=order)
    with pytest.raises(ValueError, match="model 1 differs from model 0 at"):
        merged([MODELS[0], MODELS[0]["out"]])
    with pytest.raises(ValueError, match="Learned takes"):
        merged(granularity=Average())
    with pytest.raises(ValueError, match="the data ended after 1 batches, 3 steps were asked for"):
        successive(MODELS, apply, CrossEntropy(), iter([*BATCHES, BATCHES[0]]), ADAM, steps=3)
