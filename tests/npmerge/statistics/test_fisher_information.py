"""The three kinds of Fisher information against float64 numpy, on softmax regression whose gradients are x (y - p)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import trace
from npmerge import DiagonalFisher, Fisher, KroneckerFactors, collect, stack_models
from npmerge.statistics.likelihood import key_of
from tests.npmerge.toys import array, dense, float64, log_softmax64

SIZES = (3, 4)
MODELS = [{"kernel": array(k, *SIZES), "bias": array(10 + k, SIZES[1])} for k in range(2)]
GRAPH = trace(dense, MODELS[0], jnp.zeros((2, SIZES[0])))
SEQUENCES = trace(dense, MODELS[0], jnp.zeros((2, 5, SIZES[0])))


def data(seed: int, *shape: int) -> tuple[jax.Array, jax.Array]:
    labels = np.random.default_rng(seed).integers(0, SIZES[1], shape)
    return array(seed, *shape, SIZES[0]), jnp.asarray(labels, jnp.int32)


def information(statistic: DiagonalFisher, *batches, graph=GRAPH):
    return collect(dense, graph, MODELS, batches, [statistic])[DiagonalFisher]


def scores64(model, inputs, y) -> dict[str, np.ndarray]:
    """d log p(y|x) / d theta for each prediction."""
    m, x = float64(model), np.asarray(inputs, np.float64)
    residual = np.eye(SIZES[1])[np.asarray(y)] - np.exp(log_softmax64(x @ m["kernel"] + m["bias"]))
    return {"kernel": x[..., :, None] * residual[..., None, :], "bias": residual}


def exact64(model, inputs) -> dict[str, np.ndarray]:
    """E_y of the squared scores of each prediction."""
    m, x = float64(model), np.asarray(inputs, np.float64)
    p = np.exp(log_softmax64(x @ m["kernel"] + m["bias"]))
    found = [scores64(model, inputs, np.full(p.shape[:-1], y)) for y in range(SIZES[1])]
    return {n: sum(p[..., y].reshape(*p.shape[:-1], *(1,) * (f[n].ndim - p.ndim + 1)) * f[n] ** 2 for y, f in enumerate(found))
            for n in m}  # fmt: skip


def each(function, *args) -> dict[str, np.ndarray]:
    found = [function(model, *args) for model in MODELS]
    return jax.tree.map(lambda *x: np.stack(x).astype(np.float32), *found)


def mean(tree):
    return jax.tree.map(lambda x: x.mean(0), tree)


def test_exact():
    x, _ = data(0, 6)
    expected = each(lambda model: mean(exact64(model, x)))
    chex.assert_trees_all_close(information(DiagonalFisher(microbatch=4), (x, None)), expected, rtol=1e-4, atol=1e-6)


def test_empirical():
    x, y = data(1, 6)
    expected = each(lambda model: mean(jax.tree.map(np.square, scores64(model, x, y))))
    chex.assert_trees_all_close(information(DiagonalFisher("empirical", 4), (x, y)), expected, rtol=1e-4, atol=1e-6)


def test_sampled_converges_to_the_exact_one():
    x, _ = data(2, 4000)
    expected = each(lambda model: mean(exact64(model, x)))
    found = information(DiagonalFisher("sampled", 500), (x, None))
    for name in expected:
        assert np.abs(found[name] / expected[name] - 1).max() < 0.15
    assert np.abs(information(DiagonalFisher("sampled", 500, 1), (x, None))["bias"] - found["bias"]).max() > 1e-4


def test_draws_depend_on_no_batches_and_no_order():
    x, _ = data(3, 6)
    sampled = DiagonalFisher("sampled", 4)
    together = information(sampled, (x, None))
    apart = information(sampled, (x[3:], None), (x[:3][::-1], None))
    chex.assert_trees_all_close(apart, together, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_every_example_has_a_key_of_its_own(dtype):
    """Binary images, in which the bits that differ are few."""
    x = jnp.asarray(np.random.default_rng(4).integers(0, 2, (3000, 40))).astype(dtype)
    keys = np.asarray(jax.random.key_data(jax.jit(jax.vmap(lambda e: key_of(0, e)))(x)))
    assert len(np.unique(keys, axis=0)) == len(x)


def test_squares_of_the_predictions_of_an_example_add_up():
    """Those of independent draws: E (sum_t s_t)^2 = sum_t E s_t^2."""
    x, y = data(5, 3, 5)
    expected = each(lambda model: mean(jax.tree.map(lambda f: f.sum(1), exact64(model, x))))
    chex.assert_trees_all_close(
        information(DiagonalFisher(microbatch=2), (x, y), graph=SEQUENCES), expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("statistic", [DiagonalFisher("sampled"), KroneckerFactors()])
def test_a_network_of_one_output_has_no_classes_and_is_refused(statistic):
    model, x = {"kernel": array(0, 3, 1), "bias": array(1, 1)}, array(2, 4, 3)
    with pytest.raises(ValueError, match=r"needs logits of two classes at least, got outputs of shape \(4, 1\): .* RegMean"):
        collect(dense, trace(dense, model, x), [model], [(x, None)], [statistic])


def test_labels_of_the_predictions_of_an_example_are_one_likelihood():
    """The scores of an example are summed, then squared."""
    x, y = data(6, 3, 5)
    expected = each(lambda model: mean(jax.tree.map(lambda s: s.sum(1) ** 2, scores64(model, x, y))))
    found = information(DiagonalFisher("empirical", 2), (x, y), graph=SEQUENCES)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_padding_is_left_out(kind):
    """By labels below zero or a mask: sequences count what they hold, one that is all padding not at all."""
    x, y = data(7, 3, 5)
    if kind == "exact":
        batch = (x, y.at[:, 3:].set(-1).at[2].set(-1))
        expected = each(lambda model: mean(jax.tree.map(lambda f: f.sum(1), exact64(model, x[:2, :3]))))
    else:
        batch = (x, y, jnp.ones((3, 5), bool).at[:, 3:].set(False).at[2].set(False))
        expected = each(lambda model: mean(jax.tree.map(lambda s: s.sum(1) ** 2, scores64(model, x[:2, :3], y[:2, :3]))))
    chex.assert_trees_all_close(information(DiagonalFisher(kind, 2), batch, graph=SEQUENCES), expected, rtol=1e-4, atol=1e-6)


def test_copies_of_a_model_have_the_same_draws():
    x, _ = data(8, 6)
    found = collect(dense, GRAPH, MODELS[:1] * 2, [(x, None)], [DiagonalFisher("sampled", 4)])[DiagonalFisher]
    chex.assert_trees_all_equal(mean(found), jax.tree.map(lambda f: f[0], found))


@pytest.mark.parametrize("statistic", [DiagonalFisher(), KroneckerFactors("sampled")])
def test_a_network_that_is_no_classifier_is_told_of(statistic):
    x, _ = data(0, 6)
    with pytest.warns(UserWarning, match="but the targets are float32, no labels: without classes take RegMean"):
        statistic.measure(dense, GRAPH, MODELS, (x, jnp.zeros((6, 4))))


def test_errors():
    x, y = data(9, 6)
    with pytest.raises(ValueError, match="kind must be one of 'exact', 'sampled', 'empirical', got 'true'"):
        DiagonalFisher(kind="true")
    with pytest.raises(ValueError, match="seed must be an integer of 0 or more, got -1"):
        DiagonalFisher(seed=-1)
    for labels in (y[:, None], y.astype(jnp.float32)):
        with pytest.raises(ValueError, match=r"the empirical Fisher needs integer labels of shape \(6,\): got .* of "):
            information(DiagonalFisher("empirical", 4), (x, labels))
    with pytest.raises(ValueError, match=r"needs logits \(examples, ..., classes\): the network returns "):
        collect(lambda v, x: x @ v["bias"], GRAPH, MODELS, [(array(0, 6, SIZES[1]), None)], [DiagonalFisher()])
    with pytest.raises(ValueError, match=r"the mask has 4 positions, but the network makes \(5,\) predictions"):
        information(DiagonalFisher(microbatch=2), (*data(7, 3, 5), jnp.ones((3, 4), bool)), graph=SEQUENCES)
    bad = information(DiagonalFisher("empirical", 4), (x, y + SIZES[1]))
    with pytest.raises(ValueError, match=r"is a label no class of the network\?.* non-finite values"):
        Fisher()(stack_models(MODELS), stats={DiagonalFisher: bad})
