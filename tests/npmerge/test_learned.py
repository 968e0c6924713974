"""NP Merge and its relatives: the gradient's formula, the limits, and a convex problem with a known optimum."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import lsq_linear

from alignment.names import is_statistic
from npmerge import (
    Average,
    Clip,
    CrossEntropy,
    Entropy,
    Free,
    Learned,
    Objective,
    PerChannel,
    PerLayer,
    PerModel,
    PerParameter,
    PerTensor,
    Simplex,
    TaskArithmetic,
    Ties,
    ada_merging,
    dam,
    fit,
    np_merge,
    stack_models,
    weight_space,
)
from tests.npmerge.toys import apply, batch, normal, variables

NP = Learned(Average(), PerParameter(), Simplex())
A, B = variables(0), variables(1)
STACK = stack_models([A, B])


def test_zero_is_the_average():
    theta = NP.init(STACK)
    chex.assert_trees_all_equal(theta, jax.tree.map(jnp.zeros_like, theta))
    assert {name: x.shape for name, x in theta.items()} == {
        "first/bias": (1, 6),
        "first/kernel": (1, 4, 6),
        "out/bias": (1, 3),
        "out/kernel": (1, 6, 3),
    }
    chex.assert_trees_all_close(NP.apply(theta, STACK), Average()(STACK), rtol=1e-6)


@pytest.mark.parametrize(("value", "model"), [(50.0, A), (-50.0, B)], ids=["A", "B"])
def test_large_latents_choose_a_model(value, model):
    theta = jax.tree.map(lambda x: jnp.full_like(x, value), NP.init(STACK))
    chex.assert_trees_all_close(NP.apply(theta, STACK), model, rtol=1e-6, atol=1e-7)


def random_theta(merge, stack, seed=3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(2 * rng.standard_normal(x.shape), jnp.float32), merge.init(stack))


def test_the_gradient_is_that_of_the_paper():
    """dL/da = dL/dW (W_A - W_B) alpha (1 - alpha), for each parameter; zero where the models agree."""
    agreeing = variables(1) | {"out": A["out"]}
    stack = stack_models([A, agreeing])
    theta, data = random_theta(NP, stack), batch(0)

    def loss(params):
        return CrossEntropy()(apply, params, None, data)

    @jax.jit
    def both(theta):
        return jax.grad(lambda t: loss(NP.apply(t, stack)))(theta), jax.grad(loss)(NP.apply(theta, stack))

    got, by_weight = both(theta)
    for layer in ("first", "out"):
        for leaf in ("kernel", "bias"):
            alpha = 1 / (1 + np.exp(-np.asarray(theta[f"{layer}/{leaf}"][0], np.float64)))
            difference = np.asarray(A[layer][leaf], np.float64) - np.asarray(agreeing[layer][leaf], np.float64)
            expected = np.asarray(by_weight[layer][leaf], np.float64) * difference * alpha * (1 - alpha)
            np.testing.assert_allclose(got[f"{layer}/{leaf}"][0], expected, rtol=1e-4, atol=1e-7)
            assert bool(jnp.any(jnp.abs(got[f"{layer}/{leaf}"]) > 1e-6)) == (layer == "first")


@pytest.mark.parametrize("n", [2, 3])
def test_the_result_stays_between_the_models(n):
    stack = stack_models([variables(k) for k in range(n)])
    merged = NP.apply(random_theta(NP, stack), stack)

    def inside(m, x):
        slack = 1e-6 * float(jnp.abs(x).max())
        assert bool(jnp.all((m >= x.min(0) - slack) & (m <= x.max(0) + slack)))

    jax.tree.map(inside, merged, stack.params)


def test_coefficients_are_what_apply_uses():
    merge = Learned(TaskArithmetic(0.3), PerTensor(), Free())
    base = variables(9)
    stack = stack_models([A, B], base)
    theta = random_theta(merge, stack)
    c = merge.coefficients(theta, stack)["out"]["kernel"]
    assert c.shape == (2, 1, 1)
    a, b, o = (np.asarray(m["out"]["kernel"], np.float64) for m in (A, B, base))
    c = np.asarray(c, np.float64)
    expected = o + c[0] * (a - o) + c[1] * (b - o)
    np.testing.assert_allclose(merge.apply(theta, stack)["out"]["kernel"], expected, rtol=1e-5, atol=1e-6)


def test_layers_share_their_coefficient():
    merge = Learned(Average(), PerLayer(), Simplex())
    theta = merge.init(STACK)
    assert {name: x.shape for name, x in theta.items()} == {"first": (1,), "out": (1,)}
    merged = merge.apply({"first": jnp.full(1, 50.0), "out": jnp.full(1, -50.0)}, STACK)
    chex.assert_trees_all_close(merged, {"first": A["first"], "out": B["out"]}, rtol=1e-6, atol=1e-7)


def test_channels_are_the_last_axis():
    merge = Learned(Average(), PerChannel(), Simplex())
    theta = jax.tree.map(lambda x: jnp.full_like(x, 50.0), merge.init(STACK))
    theta["first/kernel"] = theta["first/kernel"].at[..., 2].set(-50.0)
    merged = merge.apply(theta, STACK)["first"]["kernel"]
    expected = A["first"]["kernel"].at[:, 2].set(B["first"]["kernel"][:, 2])
    chex.assert_trees_all_close(merged, expected, rtol=1e-6, atol=1e-7)


class SquaredError(Objective):
    def __call__(self, apply, params, stack, batch):
        return jnp.mean(jnp.square(apply(params, batch[0]) - batch[1]))


def test_linear_regression_reaches_the_box_constrained_optimum():
    """The oracle optimises the weights within the box of the two models directly; no scalar alpha does as well."""
    x, a, b = normal(0, 60, 6), normal(1, 6), normal(2, 6)
    y = x @ (a + normal(3, 6)) + 0.1 * normal(4, 60)
    oracle = lsq_linear(x, y, bounds=(np.minimum(a, b), np.maximum(a, b)))
    best = 2 * oracle.cost / len(y)
    alphas = np.linspace(0, 1, 1001)[:, None]
    scalar = np.square((alphas * a + (1 - alphas) * b) @ x.T - y).mean(1).min()

    def linear(params, x):
        return jnp.tensordot(x, params["w"], 1)

    stack = stack_models([{"w": jnp.asarray(w, jnp.float32)} for w in (a, b)])
    data = [(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))]
    loss = weight_space(NP, linear, SquaredError())
    result = fit(NP.init(stack), loss, stack, data, optax.adam(0.1), steps=1500)
    w = np.asarray(NP.apply(result.theta, stack)["w"], np.float64)
    reached = np.square(x @ w - y).mean()
    assert best - 1e-6 <= reached <= best * 1.01
    assert reached < 0.9 * scalar
    np.testing.assert_allclose(w, oracle.x, atol=0.02)


def test_statistics_have_no_latent():
    models = [{"params": m, "batch_stats": {"mean": jnp.full(2, float(k))}} for k, m in enumerate((A, B))]
    stack = stack_models(models)
    theta = NP.init(stack)
    assert not any(is_statistic(name) for name in theta)
    theta = jax.tree.map(lambda x: jnp.full_like(x, 50.0), theta)
    chex.assert_trees_all_close(NP.apply(theta, stack)["batch_stats"]["mean"], jnp.full(2, 0.5))


def test_only_linear_merges_can_be_learned():
    with pytest.raises(ValueError, match="Learned starts from a linear merge"):
        Learned(NP, PerTensor(), Free())
    with pytest.raises(ValueError, match="Learned takes"):
        Learned(Average(), Free(), PerTensor())


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="PerLayer pattern 'conv' matches none of 4 paths"):
        Learned(Average(), PerLayer("conv"), Free()).init(STACK)


def test_one_model_has_no_simplex():
    with pytest.raises(ValueError, match="Simplex needs at least two models, got 1"):
        NP.init(stack_models([A]))
    alone = Learned(Average(), PerParameter(), Free())
    chex.assert_trees_all_equal(alone(stack_models([A])), A)


THREE = stack_models([variables(k) for k in range(3)], variables(9))
PLUS_PLUS = ada_merging(plus_plus=True)


def test_published_merges_start_where_they_should():
    assert np_merge() == NP
    chex.assert_trees_all_close(dam()(THREE), Average()(THREE), rtol=1e-6, atol=1e-6)
    for layer_wise in (True, False):
        chex.assert_trees_all_close(ada_merging(layer_wise=layer_wise)(THREE), TaskArithmetic(0.3)(THREE), rtol=1e-6, atol=1e-6)
        merge = ada_merging(0.2, layer_wise=layer_wise, plus_plus=True)
        chex.assert_trees_all_close(merge(THREE), Ties(0.2, 0.2, merge="sum")(THREE), rtol=1e-6, atol=1e-6)


def test_task_wise_is_layer_wise_with_tied_lambdas():
    c = jnp.asarray([0.1, 0.7, 1.4], jnp.float32)  # the last is cut off at one
    tied = dict.fromkeys(ada_merging().init(THREE), c)
    one = ada_merging(layer_wise=False).apply({"all": c}, THREE)
    chex.assert_trees_all_equal(ada_merging().apply(tied, THREE), one)
    chex.assert_trees_all_close(one, TaskArithmetic(1.0, (0.1, 0.7, 1.0))(THREE), rtol=1e-5, atol=1e-5)


def test_columns_are_input_channels():
    theta = dam().init(THREE)
    assert {name: x.shape[1:] for name, x in theta.items()} == {
        "first/bias": (6,),
        "first/kernel": (4, 1),
        "out/bias": (3,),
        "out/kernel": (6, 1),
    }
    theta["first/kernel"] = theta["first/kernel"].at[:, 2].set(jnp.asarray([[0.0], [2.0], [0.0]]))
    expected = Average()(THREE)["first"]["kernel"].at[2].set(2 * THREE.params["first"]["kernel"][1, 2])
    chex.assert_trees_all_close(dam().apply(theta, THREE)["first"]["kernel"], expected, rtol=1e-6, atol=1e-6)


def test_learning_moves_lambdas_and_no_masks():
    """Entries that were trimmed, or lost the vote, stay at the base whatever lambda; two Adam steps of 1e-3 are 2e-3."""
    theta, (inputs, _) = PLUS_PLUS.init(THREE), batch(0)
    result = fit(theta, weight_space(PLUS_PLUS, apply, Entropy()), THREE, [(inputs, None)], optax.adam(1e-3), steps=2)
    chex.assert_trees_all_equal(result.theta["masks"], theta["masks"])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), result.theta["latents"], theta["latents"])
    assert 1e-3 < max(moved.values()) < 2.1e-3
    kept = Ties(0.2, merge="sum").init(THREE)
    coefficients = PLUS_PLUS.coefficients(result.theta, THREE)
    jax.tree.map(lambda c, k: np.testing.assert_array_equal(np.asarray(c) != 0, np.asarray(k) != 0), coefficients, kept)


def test_masks_are_of_task_vectors():
    for start, masks in ((TaskArithmetic(), Average()), (Average(), Ties()), (TaskArithmetic(), NP)):
        with pytest.raises(ValueError, match="masks are of task vectors"):
            Learned(start, PerTensor(), Free(), masks)


def test_clipping_has_no_gradient_outside():
    latent = jnp.asarray([[-0.5], [0.25], [1.5]])
    value, gradient = Clip().forward(latent), jax.grad(lambda x: Clip().forward(x).sum())(latent)
    np.testing.assert_array_equal(value[:, 0], [0, 0.25, 1])
    np.testing.assert_array_equal(gradient[:, 0], [0, 1, 0])
    with pytest.raises(ValueError, match=r"outside the box \[0.0, 1.0\], such as 1.5"):
        Learned(TaskArithmetic(1.5), PerModel(), Clip()).init(THREE)
    with pytest.raises(ValueError, match="Clip needs low < high"):
        Clip(1.0, 0.0)
