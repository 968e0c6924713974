"""Embeddings in Gram matrices: frequencies of tokens, as of a dense layer of one-hot inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import trace
from npmerge import InputGram, MaTS, RegMean, collect, collect_each, load_statistics, save_statistics, stack_models
from tests.npmerge.toys import array

TOKENS = 7
MODELS = [{"table": array(k, TOKENS, 4), "out": array(10 + k, 4, 3)} for k in range(2)]
STACK = stack_models(MODELS)
GRAM = MaTS("gram", iterations=60, tolerance=0.0)


def embedded(v, x):
    return jnp.tanh(jnp.take(v["table"], x, axis=0)) @ v["out"]


def one_hot(v, x):
    return jnp.tanh(jax.nn.one_hot(x, TOKENS) @ v["table"]) @ v["out"]


def data(*tokens: int) -> tuple:
    """Sequences of these tokens, padded by the last of them."""
    x = np.random.default_rng(0).permutation(tokens * 3).reshape(-1, 3)
    mask = np.arange(3) < 2
    x = np.where(mask, x, tokens[-1])
    return jnp.asarray(x, jnp.int32), None, jnp.asarray(np.broadcast_to(mask, x.shape))


OVERLAPPING = [[data(0, 1, 2, 3, 4)], [data(2, 3, 4, 5, 6, 6)]]
DISJOINT = [[data(0, 2, 4)], [data(1, 3, 5)]]


def gathered(apply, tasks):
    return collect_each(apply, trace(apply, MODELS[0], tasks[0][0][0]), MODELS, tasks, [InputGram(4)])


@pytest.fixture(scope="module")
def own():
    return gathered(embedded, DISJOINT)


@pytest.fixture(scope="module")
def shared():
    return gathered(embedded, OVERLAPPING)


def test_frequencies_are_the_diagonal_of_one_hot_inputs(shared):
    dense, looked_up = gathered(one_hot, OVERLAPPING), shared
    g, f = dense[InputGram]["table"], looked_up[InputGram]["table"]
    np.testing.assert_array_equal(f.samples, g.samples)
    np.testing.assert_allclose(f.gram, np.diagonal(g.gram, axis1=1, axis2=2), rtol=1e-6)
    x, _, mask = OVERLAPPING[1][0]
    counts = np.bincount(np.asarray(x)[np.asarray(mask)], minlength=TOKENS)
    np.testing.assert_allclose(f.gram[1], counts / counts.sum(), rtol=1e-6)
    for merge in (RegMean(0.9), GRAM):
        expected, found = (merge(STACK, stats=stats) for stats in (dense, looked_up))
        for name in ("table", "out"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_tokens_that_one_model_read_are_its_own_and_others_the_mean(own):
    tables = np.stack([m["table"] for m in MODELS])
    expected = np.where((np.arange(TOKENS) % 2 == 0)[:, None], *tables)
    expected[6] = tables[:, 6].mean(0)  # nobody read it
    for found in (RegMean(ridge=0.0)(STACK, stats=own), GRAM(STACK, stats=own)):  # rows without reads are no reason to warn
        np.testing.assert_allclose(found["table"], expected, rtol=1e-5, atol=1e-6)


def test_copies_of_a_model_return_it(shared):
    merged = RegMean()(stack_models([MODELS[0]] * 2), stats=shared)
    np.testing.assert_array_equal(merged["table"], MODELS[0]["table"])


def test_frequencies_add_up_over_batches_and_come_back_from_a_file(own, tmp_path):
    (x, _, mask), graph = DISJOINT[0][0], trace(embedded, MODELS[0], DISJOINT[0][0][0])
    parts = [(x[:2], None, mask[:2]), (x[2:], None, mask[2:])]
    found = collect(embedded, graph, MODELS[:1], parts, [InputGram(4)])
    np.testing.assert_allclose(found[InputGram]["table"].gram[0], own[InputGram]["table"].gram[0], rtol=1e-6)
    save_statistics(tmp_path, found, graph)
    back = load_statistics(tmp_path, graph)[InputGram]["table"]
    assert back.site is graph.lookups[0]
    np.testing.assert_array_equal(back.gram, found[InputGram]["table"].gram)


def test_frequencies_of_other_models_are_refused(own):
    wide = stack_models([{**m, "table": array(k, 9, 4)} for k, m in enumerate(MODELS)])
    with pytest.raises(ValueError, match=r"'table' is of other models or another layer: got \(2, 7\), expected \(2, 9\)"):
        RegMean()(wide, stats=own)
