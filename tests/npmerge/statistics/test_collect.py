"""`collect` and the diagonal Fisher information, against an explicit loop over examples in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import trace
from npmerge import (
    ChainOfMerges,
    DiagonalFisher,
    Examples,
    InputGram,
    JointMoments,
    KroneckerFactors,
    NodeMoments,
    RegMeanPlusPlus,
    collect,
    collect_each,
    stack_models,
)
from tests.npmerge.toys import SIZES, apply, array, batch, float64, log_softmax64, logits64, variables

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


def test_progress_is_told_after_each_batch(graph):
    told = []
    collect(apply, graph, MODELS, BATCHES, [NodeMoments], progress=told.append)
    assert told == [1, 2]
    collect_each(apply, graph, MODELS, [BATCHES, BATCHES[:1]], [InputGram], progress=told.append)
    assert told == [1, 2, 1, 2, 3]


@pytest.mark.parametrize("microbatch", [3, 64], ids=lambda n: f"microbatch{n}")
def test_fisher_against_a_loop(graph, microbatch):
    """3 divides neither batch, 64 is larger than both."""
    found = collect(apply, graph, MODELS, BATCHES, [DiagonalFisher(microbatch=microbatch)])[DiagonalFisher]
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
    wanted = [DiagonalFisher(microbatch=4)]
    a = collect(apply, graph, MODELS, iter(BATCHES), wanted)
    b = collect(apply, graph, MODELS, ((x, None) for x, _ in BATCHES), wanted)
    chex.assert_trees_all_equal(a[DiagonalFisher], b[DiagonalFisher])


def test_padding_is_no_example_of_any_statistic(graph):
    """By a mask, and by targets below zero; eight batches on eight devices are one."""
    x, labels = array(9, 16, SIZES[0]), jnp.asarray(np.arange(16) % 3, jnp.int32)
    kept = np.arange(16) % 5 != 1
    every = [DiagonalFisher("empirical"), InputGram, KroneckerFactors("empirical"), NodeMoments, JointMoments]
    expected = collect(apply, graph, MODELS, [(x[kept], labels[kept])], every)
    marked = jnp.where(kept, labels, -1)
    parts = [jax.device_put((x[k : k + 2], labels[k : k + 2], kept[k : k + 2]), jax.devices()[k // 2]) for k in range(0, 16, 2)]
    for batches in ([(x, labels, kept)], [(x, marked)], parts):
        chex.assert_trees_all_close(collect(apply, graph, MODELS, batches, every), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="all that the batches hold is padding"):
        collect(apply, graph, MODELS, [(x, labels, kept & ~kept)], [NodeMoments])


def test_classes_stand_for_their_defaults(graph):
    both = collect(apply, graph, MODELS[:1], BATCHES[:1], [NodeMoments, NodeMoments()])
    chex.assert_trees_all_equal(both[NodeMoments], collect(apply, graph, MODELS[:1], BATCHES[:1], [NodeMoments()])[NodeMoments])


def test_errors(graph):
    with pytest.raises(ValueError, match="collect needs data: got no batches"):
        collect(apply, graph, MODELS, [], [NodeMoments()])
    with pytest.raises(ValueError, match="collect needs at least one model, got an empty list"):
        collect(apply, graph, [], BATCHES, [NodeMoments()])
    with pytest.raises(ValueError, match=r"one statistic of each type, got.*microbatch=2.*microbatch=3"):
        collect(apply, graph, MODELS, BATCHES, [DiagonalFisher(microbatch=2), DiagonalFisher(microbatch=3)])


def test_a_microbatch_must_be_positive(graph):
    with pytest.raises(ValueError, match="microbatch"):
        collect(apply, graph, MODELS, BATCHES, [DiagonalFisher(microbatch=0)])


def test_inputs_of_another_width(graph):
    """Sequences and images may be of other sizes than those that were traced: only what the network refuses is refused."""
    wide = [(jnp.zeros((5, SIZES[0] + 1)), jnp.zeros(5, jnp.int32))]
    for statistic in (NodeMoments(), DiagonalFisher(), InputGram(), Examples()):
        message = rf"does not take inputs of shape \(5, {SIZES[0] + 1}\): expected such as \(2, {SIZES[0]}\)"
        with pytest.raises(ValueError, match=message) as caught:
            collect(apply, graph, MODELS, wide, [statistic])
        assert "\n" not in str(caught.value)

    def pooled(v, x):
        return x.mean(1) @ v["w"]

    model = {"w": jnp.ones((3, 2))}
    longer = collect(pooled, trace(pooled, model, jnp.zeros((2, 4, 3))), [model], [(jnp.ones((5, 9, 3)), None)], [InputGram()])
    np.testing.assert_allclose(longer[InputGram]["w"].gram, 1)


def test_another_number_of_labels(graph):
    x, y = BATCHES[0]
    for statistic in (NodeMoments(), DiagonalFisher(), InputGram(), Examples()):
        with pytest.raises(ValueError, match="a batch has 7 inputs and 5 labels"):
            collect(apply, graph, MODELS, [(x, y[:5])], [statistic])


def test_what_was_collected_is_a_tree(graph):
    found = collect(apply, graph, MODELS, BATCHES, [NodeMoments, InputGram, DiagonalFisher, Examples])
    assert list(found) == [NodeMoments, InputGram, DiagonalFisher, Examples]
    doubled = jax.jit(lambda stats: jax.tree.map(lambda x: x + x, stats))(type(found)({k: found[k] for k in list(found)[:3]}))
    assert isinstance(doubled, type(found))
    for kind in (NodeMoments, InputGram, DiagonalFisher):
        chex.assert_trees_all_equal(doubled[kind], jax.tree.map(lambda x: 2 * x, found[kind]))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(found)[0]]
    assert all("npmerge" in path or "alignment" in path for path in paths)


def test_data_that_are_kept_count(graph):
    """A list of the same batch is no less: each is kept."""
    x, y = BATCHES[0]
    size = x.nbytes + len(x)
    model = sum(leaf.nbytes for leaf in jax.tree.leaves(MODELS))
    limit = model + x.nbytes + y.nbytes + 3 * size
    assert len(collect(apply, graph, MODELS, [(x, y)] * 3, [Examples], memory_limit=limit)[Examples].tasks[0]) == 3
    with pytest.raises(ValueError, match=r"Examples would hold .* more than memory_limit=.* bytes"):
        collect(apply, graph, MODELS, [(x, y)] * 4, [Examples], memory_limit=limit)
    with pytest.raises(ValueError, match=r"GB of data among them.*use fewer examples"):
        collect(apply, graph, MODELS, [(x, y)] * 400, [Examples], memory_limit=300 * size)


def test_passes_over_kept_data_have_the_limit_too(graph):
    stack = stack_models(MODELS)
    kept, more = (collect(apply, graph, MODELS, BATCHES, [Examples], memory_limit=limit) for limit in (4000, 8000))
    for merge in (ChainOfMerges(), RegMeanPlusPlus()):
        with pytest.raises(ValueError, match=rf"{type(merge).__name__} would hold .*GB of matrices.*memory_limit=4000 bytes"):
            merge(stack, stats=kept)
        merge(stack, stats=more)
