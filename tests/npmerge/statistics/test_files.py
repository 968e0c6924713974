"""Statistics to a folder and back."""

import chex
import jax
import jax.numpy as jnp
import pytest

from alignment import trace
from npmerge import (
    DiagonalFisher,
    InputGram,
    JointMoments,
    KroneckerFactors,
    NodeMoments,
    RegMean,
    collect,
    load_statistics,
    save_statistics,
    stack_models,
)
from tests.npmerge.toys import SIZES, apply, array, batch, dense, variables

MODELS = [variables(0), variables(1)]
EVERY = [DiagonalFisher, InputGram, JointMoments, KroneckerFactors, NodeMoments]


def test_statistics_come_back_for_merges_and_only_for_their_graph(tmp_path):
    graph = trace(apply, MODELS[0], jnp.zeros((2, SIZES[0])))
    stats = collect(apply, graph, MODELS, [batch(0, 9)], EVERY)
    save_statistics(tmp_path / "run" / "stats", stats, graph)
    again = trace(apply, MODELS[0], jnp.zeros((5, SIZES[0])))
    back = load_statistics(tmp_path / "run" / "stats", again)
    assert set(back) == set(EVERY)
    for kind in EVERY:
        chex.assert_trees_all_equal(jax.tree.leaves(back[kind]), jax.tree.leaves(stats[kind]))
    assert back[InputGram]["out/kernel"].site is next(s for s in again.sites if s.name == "out/kernel")
    stack = stack_models(MODELS)
    chex.assert_trees_all_equal(*(jax.jit(RegMean().apply)(RegMean().init(stack, stats=s), stack) for s in (stats, back)))

    wide = MODELS[0] | {"out": {"kernel": array(0, SIZES[1], 5), "bias": array(1, 5)}}
    with pytest.raises(ValueError, match=r"another graph: the shape of 'out/bias' is \[3\] there and \[5\] here"):
        load_statistics(tmp_path / "run" / "stats", trace(apply, wide, jnp.zeros((2, SIZES[0]))))

    def twice(v, x):
        return apply(v, x) + dense(v["out"], jax.nn.relu(dense(v["first"], x)))

    with pytest.raises(ValueError, match=r"is of another graph: site 'first/kernel#2' is None there"):
        load_statistics(tmp_path / "run" / "stats", trace(twice, MODELS[0], jnp.zeros((2, SIZES[0]))))
    with pytest.raises(ValueError, match="exists: choose another name, or pass overwrite=True"):
        save_statistics(tmp_path / "run" / "stats", stats, graph)
    with pytest.raises(ValueError, match="holds no statistics"):
        load_statistics(tmp_path, graph)
    with pytest.raises(ValueError, match="cannot save int"):
        save_statistics(tmp_path, {int: 3}, graph)
    with pytest.raises(ValueError, match=r"takes \(folder, stats, graph\), got \(Collected, PosixPath, Graph\)"):
        save_statistics(stats, tmp_path, graph)
    with pytest.raises(ValueError, match=r"takes \(folder, graph\), got \(Graph, PosixPath\)"):
        load_statistics(graph, tmp_path)
