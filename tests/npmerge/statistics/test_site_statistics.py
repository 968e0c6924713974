"""Gram matrices and Kronecker factors: padding, chunks, convolutions, and states put together in any order and anywhere."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import capture, trace
from npmerge import DiagonalFisher, InputGram, KroneckerFactors, NodeMoments, collect
from npmerge.memory import peak_bytes
from npmerge.models import Llama, build
from npmerge.statistics.collect import Statistic
from npmerge.statistics.one_pass import measure
from tests.npmerge.toys import SIZES, apply, array, batch, dense, float64, log_softmax64, logits64, variables

MODELS = [variables(0), variables(1)]
EVERY = (InputGram(3), KroneckerFactors("sampled", 4), DiagonalFisher("sampled", 4))


@pytest.fixture(scope="module")
def graph():
    return trace(apply, MODELS[0], jnp.zeros((2, SIZES[0])))


def factors64(model, inputs, outcomes) -> dict:
    """Sums over examples; outcomes(k, p) gives pairs of a class and how much it counts."""
    m = float64(model)
    total = {"first": np.zeros((6, 6)), "out": np.zeros((3, 3))}
    for k, x in enumerate(np.asarray(inputs, np.float64)):
        alive = x @ m["first"]["kernel"] + m["first"]["bias"] > 0
        p = np.exp(log_softmax64(logits64(model, x)))
        for y, weight in outcomes(k, p):
            g = np.eye(3)[y] - p
            back = (m["out"]["kernel"] @ g) * alive
            total["first"] += weight * np.outer(back, back)
            total["out"] += weight * np.outer(g, g)
    return {layer: t / len(inputs) for layer, t in total.items()}


@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_kronecker_factors_against_a_loop(graph, kind):
    x, labels = batch(0, 7)
    found = collect(apply, graph, MODELS, [(x, labels)], [KroneckerFactors(kind, 3), InputGram])
    for k, model in enumerate(MODELS):
        expected = factors64(model, x, lambda n, p: enumerate(p) if kind == "exact" else [(int(labels[n]), 1.0)])
        for layer, b in expected.items():
            factors = found[KroneckerFactors][f"{layer}/kernel"]
            np.testing.assert_allclose(factors.gradients[k], b, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(factors.inputs[k], found[InputGram][f"{layer}/kernel"].gram[k], rtol=1e-5, atol=1e-6)
            assert factors.samples[k] == 7


def test_of_one_example_the_product_of_the_factors_is_its_fisher_information(graph):
    """Its diagonal, for outcomes drawn alike."""
    one = [(array(5, 1, SIZES[0]), None)]
    found = collect(
        apply, graph, MODELS, one, [KroneckerFactors(kind="sampled", seed=2), DiagonalFisher(kind="sampled", seed=2)]
    )
    for layer in ("first", "out"):
        f = found[KroneckerFactors][f"{layer}/kernel"]
        product = np.einsum("mii,mjj->mij", f.inputs, f.gradients)
        np.testing.assert_allclose(product, found[DiagonalFisher][layer]["kernel"], rtol=1e-4, atol=1e-7)


def test_states_of_eight_parts_on_two_devices_in_any_order_are_one_pass(graph):
    """Parts of five and of two examples, some of them padding."""
    x, labels = batch(3, 28)
    labels = labels.at[jnp.array([0, 11, 20, 21])].set(-1)
    whole = collect(apply, graph, MODELS, [(x, labels)], EVERY)
    ends = np.cumsum([0] + [5, 2] * 4)

    @jax.jit
    def measure(models, part):
        return [s.measure(apply, graph, models, part) for s in EVERY]

    states = []
    for k in range(8):
        part = (x[ends[k] : ends[k + 1]], labels[ends[k] : ends[k + 1]])
        states.append(jax.device_get(measure(*jax.device_put((MODELS, part), jax.devices()[k % 2]))))
    for order in (range(8), np.random.default_rng(0).permutation(8)):
        for number, statistic in enumerate(EVERY):
            left, *others = [states[k][number] for k in order]
            right = statistic.combine(others[-2], others[-1])
            for state in others[:-2]:
                left = statistic.combine(left, state)
            found = statistic.finalise(statistic.combine(left, right))
            chex.assert_trees_all_close(found, whole[type(statistic)], rtol=1e-4, atol=1e-6)


def sequences(v, tokens):
    """Logits at each position, and of the whole; every position is looked at alone, but for the second."""
    h = jax.nn.relu(dense(v["first"], v["table"][tokens]))
    real = (tokens > 0)[..., None].astype(jnp.float32)
    mean = (h * jnp.broadcast_to(real, h.shape)).sum(1) / jnp.maximum(jnp.broadcast_to(real, h.shape).sum(1), 1)
    return dense(v["out"], mean)


def test_padding_is_left_out_and_tokens_weigh_alike():
    model = variables(2) | {"table": array(8, 5, SIZES[0])}
    tokens = np.random.default_rng(1).integers(1, 5, (5, 4))
    lengths = np.array([4, 2, 4, 2, 0])
    mask = np.arange(4) < lengths[:, None]
    tokens = jnp.asarray(np.where(mask, tokens, 0), jnp.int32)
    graph = trace(sequences, model, tokens)
    statistics = [InputGram(2), KroneckerFactors(microbatch=2)]
    found = collect(sequences, graph, [model], [(tokens, None, mask)], statistics)
    gram, factors = found[InputGram], found[KroneckerFactors]["first/kernel"]
    x = float64(model)["table"][np.asarray(tokens)[mask]]
    np.testing.assert_allclose(gram["first/kernel"].gram[0], x.T @ x / 12, rtol=1e-5)
    assert gram["first/kernel"].samples.tolist() == [12] == factors.samples.tolist()
    assert gram["out/kernel"].samples.tolist() == [4]
    # the same tokens without padding, a batch for each length
    each = [(tokens[k : k + 1, :n], None) for k, n in enumerate(lengths) if n]
    alone = collect(sequences, graph, [model], each, statistics)
    for kind in (InputGram, KroneckerFactors):
        chex.assert_trees_all_close(alone[kind], found[kind], rtol=1e-4, atol=1e-6)


def test_padding_that_cannot_be_told_is_refused(graph):
    x, labels = batch(0, 4)
    pairs = trace(lambda v, x: dense(v["first"], x).sum(1), MODELS[0], jnp.zeros((4, 3, SIZES[0])))
    with pytest.raises(ValueError, match=r"the mask has 2 positions, but site 'first/kernel' has 3 samples"):
        InputGram().measure(
            lambda v, x: dense(v["first"], x).sum(1), pairs, MODELS, (jnp.zeros((4, 3, SIZES[0])), None, jnp.ones((4, 2), bool))
        )
    for mask in (np.ones(3, bool), np.ones(4), np.ones((4, 2, 2), bool), [True] * 4):
        with pytest.raises(ValueError, match=r"a mask must be of bool, \(4,\) or \(4, positions\)"):
            collect(apply, graph, MODELS, [(x, labels, mask)], [InputGram])


def test_what_stands_behind_the_end_of_a_causal_sequence_does_not_matter():
    """Of no node or site, with heads whose samples are pairs of positions, and groups of heads that are samples."""
    config = Llama(vocabulary=11, width=8, layers=1, heads=4, kv_heads=2, hidden=6, length=5)
    network = build(config)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (4, 5)), jnp.int32)
    mask = np.arange(5) < np.array([2, 3, 1, 5])[:, None]
    graph = trace(network.apply, network.variables, tokens)
    found, other = (
        collect(network.apply, graph, [network.variables], [(x, None, mask)], [NodeMoments, InputGram])
        for x in (tokens, jnp.where(mask, tokens, (tokens + 3) % 11))
    )
    chex.assert_trees_all_close(found, other, rtol=1e-4, atol=1e-5)
    assert {int(m.samples) for m in found[NodeMoments].values()} == {11, 22, 39}


def test_functions_that_are_written_otherwise_for_a_batch_of_one():
    """A class token is broadcast over several examples only."""

    def tokens(v, x):
        token = jnp.broadcast_to(v["token"], (len(x), 1, 4))
        return dense(v["first"], jnp.concatenate([token, x], 1)).sum(1)

    v = variables(0) | {"token": array(1, 1, 1, 4)}
    x = array(2, 5, 3, 4)
    graph = trace(tokens, v, x)
    found = collect(tokens, graph, [v], [(x, None)], [InputGram(2)])[InputGram]["first/kernel"]
    read = np.concatenate([np.broadcast_to(v["token"], (5, 1, 4)), x], 1).reshape(-1, 4)
    np.testing.assert_allclose(found.gram[0], read.T @ read / 20, rtol=1e-5)
    assert found.site in graph.sites
    with pytest.raises(ValueError, match=r"the mask has 3 positions, but site 'first/kernel' has 4 samples"):
        collect(tokens, graph, [v], [(x, None, jnp.ones((5, 3), bool))], [InputGram])


def test_convolutions_by_patches():
    """Grouped and strided: in chunks the same as all patches at once."""

    def convolved(v, x):
        options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 2}
        h = jax.nn.relu(jax.lax.conv_general_dilated(x, v["conv"], (2, 1), "SAME", **options))
        return dense(v["out"], h.mean((1, 2)))

    v = {"conv": array(1, 3, 2, 2, 6), "out": {"kernel": array(2, 6, 3), "bias": array(3, 3)}}
    x = array(4, 5, 4, 5, 4)
    graph = trace(convolved, v, x)
    patches = np.asarray(capture(convolved, graph, v, x, nodes=(), sites=["conv"]).sites["conv"].inputs, np.float64)
    found = collect(convolved, graph, [v], [(x, None)], [InputGram(2)])[InputGram]["conv"]
    np.testing.assert_allclose(found.gram[0], patches.swapaxes(1, 2) @ patches / patches.shape[1], rtol=1e-4, atol=1e-5)
    assert found.samples.tolist() == [5 * 2 * 5]


@pytest.mark.parametrize("statistic", [InputGram, KroneckerFactors], ids=lambda s: s.__name__)
def test_a_pass_that_would_not_fit_is_refused_before_it_starts(graph, statistic):
    read = []

    def batches():
        for k in range(3):
            read.append(k)
            yield batch(k, 64)

    with pytest.raises(
        ValueError, match=rf"{statistic.__name__} would hold .* GB.*memory_limit=6000 bytes: use smaller batches"
    ):
        collect(apply, graph, MODELS, batches(), [statistic(microbatch=64)], memory_limit=6000)
    assert read == [0]
    with pytest.raises(ValueError, match="use fewer models at once"):
        collect(apply, graph, MODELS, batches(), [statistic(microbatch=1)], memory_limit=1000)
    with pytest.raises(ValueError, match="memory_limit=60000 bytes: use smaller batches"):  # the second
        collect(apply, graph, MODELS, [batch(0, 4), batch(1, 500)], [statistic(microbatch=500)], memory_limit=60_000)


def test_more_examples_at_once_hold_more(graph):
    """The prediction is no less than what XLA allots, and follows it."""
    x = batch(0, 256)
    for size in (8, 256):
        traced = measure.trace(apply, graph, (InputGram(size),), tuple(MODELS), x)
        predicted = peak_bytes(traced.jaxpr.jaxpr)
        found = traced.lower().compile().memory_analysis()
        allotted = found.temp_size_in_bytes + found.argument_size_in_bytes + found.output_size_in_bytes
        assert 0.8 * allotted < predicted < 6 * allotted


def test_statistics_are_statistics():
    for bad in ({"microbatch": 0}, {"kind": "true"}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            KroneckerFactors(**bad)
    assert all(isinstance(s, Statistic) for s in EVERY)
