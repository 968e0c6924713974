"""`collect` and the diagonal Fisher information, against an explicit loop over examples in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import trace
from npmerge import DiagonalFisher, NodeMoments, collect
from tests.npmerge.toys import SIZES, apply, batch, float64, log_softmax64, logits64, variables

MODELS = [variables(0), variables(1)]
BATCHES = [batch(0, 7), batch(1, 4)]
WHOLE = [tuple(jnp.concatenate(parts) for parts in zip(*BATCHES, strict=True))]


@pytest.fixture(scope="module")
def graph():
    return trace(apply, MODELS[0], jnp.zeros((2, SIZES[0])))


def fisher64(model, inputs) -> dict:
    """E_x E_{y ~ p(y|x)} (d log p(y|x) / d theta)^2: one example and one class at a time, backpropagated by hand."""
    m = float64(model)
    total = jax.tree.map(np.zeros_like, m)
    for x in np.asarray(inputs, np.float64):
        pre = x @ m["first"]["kernel"] + m["first"]["bias"]
        hidden = np.maximum(pre, 0)
        p = np.exp(log_softmax64(logits64(model, x)))
        for y in range(len(p)):
            at_logits = np.eye(len(p))[y] - p
            at_hidden = (m["out"]["kernel"] @ at_logits) * (pre > 0)
            gradient = {
                "first": {"kernel": np.outer(x, at_hidden), "bias": at_hidden},
                "out": {"kernel": np.outer(hidden, at_logits), "bias": at_logits},
            }
            total = jax.tree.map(lambda t, g, w=p[y]: t + w * g**2, total, gradient)
    return jax.tree.map(lambda t: t / len(inputs), total)


@pytest.mark.parametrize("microbatch", [3, 64], ids=lambda n: f"microbatch{n}")
def test_fisher_against_a_loop(graph, microbatch):
    """3 divides neither batch, 64 is larger than both."""
    found = collect(apply, graph, MODELS, BATCHES, [DiagonalFisher(microbatch)])[DiagonalFisher]
    expected = [fisher64(model, WHOLE[0][0]) for model in MODELS]
    expected = jax.tree.map(lambda *x: np.stack(x).astype(np.float32), *expected)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-7)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))


def test_two_batches_of_different_size_equal_one(graph):
    wanted = [DiagonalFisher, NodeMoments]
    apart, together = (collect(apply, graph, MODELS, batches, wanted) for batches in (BATCHES, WHOLE))
    assert set(apart) == {DiagonalFisher, NodeMoments}
    other_way = collect(apply, graph, MODELS, BATCHES[::-1], wanted)
    for kind in wanted:
        chex.assert_trees_all_close(apart[kind], together[kind], rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(apart[kind], other_way[kind], rtol=1e-5, atol=1e-6)


def test_labels_are_not_read_and_iterators_are_read_once(graph):
    wanted = [DiagonalFisher(4)]
    a = collect(apply, graph, MODELS, iter(BATCHES), wanted)
    b = collect(apply, graph, MODELS, ((x, None) for x, _ in BATCHES), wanted)
    chex.assert_trees_all_equal(a[DiagonalFisher], b[DiagonalFisher])


def test_classes_stand_for_their_defaults(graph):
    both = collect(apply, graph, MODELS[:1], BATCHES[:1], [NodeMoments, NodeMoments()])
    chex.assert_trees_all_equal(both[NodeMoments], collect(apply, graph, MODELS[:1], BATCHES[:1], [NodeMoments()])[NodeMoments])


def test_errors(graph):
    with pytest.raises(ValueError, match="collect needs data: got no batches"):
        collect(apply, graph, MODELS, [], [NodeMoments()])
    with pytest.raises(ValueError, match="collect needs at least one model, got an empty list"):
        collect(apply, graph, [], BATCHES, [NodeMoments()])
    with pytest.raises(ValueError, match=r"one statistic of each type, got.*microbatch=2.*microbatch=3"):
        collect(apply, graph, MODELS, BATCHES, [DiagonalFisher(2), DiagonalFisher(3)])


def test_a_microbatch_must_be_positive(graph):
    with pytest.raises(ValueError, match="microbatch"):
        collect(apply, graph, MODELS, BATCHES, [DiagonalFisher(0)])
