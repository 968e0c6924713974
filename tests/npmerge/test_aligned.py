"""An alignment and a merge as one merge."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment import CCA, ActivationMatching, SoftPermutation, WeightMatching, ZipIt, align, resize, trace
from npmerge import (
    Aligned,
    Average,
    CrossEntropy,
    Fisher,
    JointMoments,
    Learned,
    NodeMoments,
    PerParameter,
    PerTensor,
    Simplex,
    Slerp,
    Stack,
    collect,
    fit,
    stack_models,
    weight_space,
)
from tests.npmerge.toys import SIZES, apply, batch, permuted, variables

A = variables(0)
ORDER = np.array([3, 0, 5, 1, 4, 2])
NP = Learned(Average(), PerParameter(), Simplex())


@pytest.fixture(scope="module")
def graph():
    return trace(apply, A, jnp.zeros((2, SIZES[0])))


def test_a_planted_permutation_is_undone(graph):
    stack = stack_models([A, permuted(A, ORDER), permuted(A, ORDER[::-1])])
    assert float(jnp.abs(Average()(stack)["first"]["kernel"] - A["first"]["kernel"]).max()) > 0.1
    chex.assert_trees_all_close(Aligned(WeightMatching(), Average(), graph)(stack), A, rtol=1e-6)


def test_called_it_rounds_as_align_does(graph):
    stack = stack_models([A, variables(1)])
    soft = SoftPermutation(steps=0)
    expected = Average()(stack_models(align(soft, graph, stack.models())))
    merge = Aligned(soft, Average(), graph)
    chex.assert_trees_all_close(merge(stack), expected, rtol=1e-6, atol=1e-6)
    relaxed = merge.apply(merge.init(stack), stack)
    assert float(jnp.abs(relaxed["first"]["kernel"] - expected["first"]["kernel"]).max()) > 0.01


def test_the_merge_is_initialised_on_the_aligned_models(graph):
    """Slerp's coefficients depend on the angle between the models, and alignment changes it."""
    models = [A, permuted(variables(1), ORDER)]
    expected = Slerp(0.3)(stack_models(align(WeightMatching(), graph, models)))
    merged = Aligned(WeightMatching(), Slerp(0.3), graph)(stack_models(models))
    chex.assert_trees_all_close(merged, expected, rtol=1e-5, atol=1e-6)


def test_learned_inside_starts_at_the_aligned_average(graph):
    models = [A, variables(1)]
    stack = stack_models(models)
    expected = Average()(stack_models(align(WeightMatching(), graph, models)))
    merge = Aligned(WeightMatching(), NP, graph)
    theta = merge.init(stack)
    assert set(theta) == {"alignment", "merge"}
    chex.assert_trees_all_close(merge.apply(theta, stack), expected, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(jax.jit(merge.apply)(theta, stack), expected, rtol=1e-6, atol=1e-6)


def test_permutations_stay_and_coefficients_move(graph):
    stack = stack_models([A, variables(1)])
    merge = Aligned(WeightMatching(), NP, graph)
    theta = merge.init(stack)
    loss = weight_space(merge, apply, CrossEntropy())
    data = [batch(0, 16)]
    result = fit(theta, loss, stack, data, optax.adam(0.1), steps=20)
    chex.assert_trees_all_equal(result.theta["alignment"], theta["alignment"])
    assert result.history.loss[-1] < result.history.loss[0]
    assert any(bool(jnp.any(x != 0)) for x in result.theta["merge"].values())


def test_linear_maps_and_coefficients_are_learned_together(graph):
    models = [A, variables(1)]
    stack, data = stack_models(models), [batch(0, 64)]
    merge = Aligned(CCA(0.1, approximate=True), Learned(Average(), PerTensor(), Simplex()), graph)
    theta = merge.init(stack, stats=collect(apply, graph, models, data, merge.needs))
    result = fit(theta, weight_space(merge, apply, CrossEntropy()), stack, data, optax.adam(0.02), steps=20)
    assert result.history.loss[-1] < result.history.loss[0]
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), result.theta, theta)
    assert all(moved["merge"].values())
    assert all(jax.tree.leaves(moved["alignment"][1]))
    chex.assert_tree_all_finite(result.theta)


@pytest.mark.parametrize("width", [None, 0.75])
def test_zipped_networks_of_another_width_are_learned(graph, width):
    models = [A, variables(1)]
    stack, data = stack_models(models), [batch(0, 64)]
    merge = Aligned(ZipIt(width, beta=0.5), Learned(Average(), PerTensor(), Simplex()), graph)
    theta = merge.init(stack, stats=collect(apply, graph, models, data, merge.needs))
    merged = merge.apply(theta, stack)
    assert merged["first"]["kernel"].shape == (4, 6 if width is None else 9)
    expected = Average()(
        stack_models(align(merge.alignment, graph, models, stats=collect(apply, graph, models, data, [JointMoments])))
    )
    chex.assert_trees_all_close(merged, expected, rtol=1e-6, atol=1e-6)
    loss = weight_space(merge, resize(apply, graph, merged), CrossEntropy())
    result = fit(theta, loss, stack, data, optax.adam(0.02), steps=20)
    assert result.history.loss[-1] < result.history.loss[0]
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), result.theta, theta)
    assert all(jax.tree.leaves(moved))  # of both models: neither is the reference
    chex.assert_tree_all_finite(result.theta)


def test_rounding_is_that_of_the_alignment_and_leaves_the_merge(graph):
    models = [A, variables(1)]
    merge = Aligned(SoftPermutation(steps=0), NP, graph)
    soft = merge.init(stack_models(models))
    hard = merge.rounded(soft)
    chex.assert_trees_all_equal(hard["merge"], soft["merge"])
    expected = Average()(stack_models(align(merge.alignment, graph, models)))
    chex.assert_trees_all_close(merge.apply(hard, stack_models(models)), expected, rtol=1e-6, atol=1e-6)
    blurred = merge.apply(soft, stack_models(models))
    assert float(jnp.abs(blurred["first"]["kernel"] - expected["first"]["kernel"]).max()) > 0.1


def test_needs_are_those_of_the_alignment(graph):
    assert Aligned(CCA(), Average(), graph).needs == (NodeMoments,)
    assert Aligned(WeightMatching(), Average(), graph).needs == ()
    merge = Aligned(ActivationMatching(), Average(), graph)
    assert merge == Aligned(ActivationMatching(), Average(), graph)
    assert hash(merge) == hash(Aligned(ActivationMatching(), Average(), graph))
    with pytest.raises(ValueError, match="ActivationMatching needs activations"):
        merge(stack_models([A, variables(1)]))


def test_differentiable_in_the_stack(graph):
    stack = stack_models([A, permuted(A, ORDER)])
    merge = Aligned(WeightMatching(), Average(), graph)
    theta = merge.init(stack)

    def total(params):
        return merge.apply(theta, Stack(params))["first"]["bias"][0]

    gradient = jax.jit(jax.grad(total))(stack.params)["first"]["bias"]
    expected = np.zeros((2, 6), np.float32)
    expected[0, 0] = 0.5
    expected[1, np.flatnonzero(ORDER == 0)[0]] = 0.5
    chex.assert_trees_all_close(gradient, expected, atol=1e-6)


def test_statistics_of_the_unaligned_models_are_refused(graph):
    """They would be read as those of the aligned ones: silently wrong."""
    with pytest.raises(ValueError, match="Fisher needs DiagonalFisher of the aligned models"):
        Aligned(WeightMatching(), Fisher(), graph)
    with pytest.raises(ValueError, match="align first, then collect"):
        Aligned(WeightMatching(), Learned(Fisher(), PerParameter(), Simplex()), graph)
