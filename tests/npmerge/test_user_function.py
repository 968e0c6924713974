"""A network that somebody wrote with no framework: traced, aligned, merged and learned, end to end."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment import WeightMatching
from npmerge import (
    METHODS,
    Average,
    CrossEntropy,
    Learned,
    PerChannel,
    Simplex,
    align,
    evaluate,
    fit,
    reset_statistics,
    stack_models,
    trace,
    verify,
    weight_space,
)


def network(weights, x):
    """Written as anybody would: a dict, `@`, and implicit promotion of ranks."""
    h = jnp.tanh(x @ weights["w1"] + weights["b1"])
    h = jax.nn.relu(h @ weights["w2"] + weights["b2"]) * 2
    h = h + weights["shift"]
    return h @ weights["w3"] + weights["b3"]


def initial(seed):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (5, 8), "b1": (8,), "w2": (8, 6), "b2": (6,), "shift": (6,), "w3": (6, 3), "b3": (3,)}
    return {name: jnp.asarray(rng.standard_normal(shape).astype(np.float32), np.float32) for name, shape in shapes.items()}


def shuffle(weights, seed):
    """The same function with both hidden layers in another order."""
    rng = np.random.default_rng(seed)
    p, q = rng.permutation(8), rng.permutation(6)
    return {
        "w1": weights["w1"][:, p],
        "b1": weights["b1"][p],
        "w2": weights["w2"][p][:, q],
        "b2": weights["b2"][q],
        "shift": weights["shift"][q],
        "w3": weights["w3"][q],
        "b3": weights["b3"],
    }


@pytest.fixture(autouse=True)
def as_users_run_it():
    with jax.numpy_rank_promotion("allow"):
        yield


def test_end_to_end():
    a, b = initial(0), shuffle(initial(0), 1)
    x = jnp.asarray(np.random.default_rng(2).standard_normal((64, 5)).astype(np.float32), np.float32)
    labels = jnp.asarray(network(initial(5), x).argmax(-1), jnp.int32)

    graph = trace(network, a, x)
    assert [node.size for node in graph.nodes.values()] == [8, 6]
    assert not {"w1", "w2", "w3"} - {path for node in graph.nodes for path in graph.touching(node)}
    assert verify(network, graph, a, x, key=jax.random.key(0)) < 1e-5

    aligned = align(WeightMatching(), graph, [a, b])
    chex.assert_trees_all_close(aligned[1], a, rtol=1e-6)
    stack = stack_models(aligned)
    chex.assert_trees_all_close(Average()(stack), a, rtol=1e-6)

    others = stack_models(align(WeightMatching(), graph, [a, initial(3)]))
    merge = Learned(Average(), PerChannel(), Simplex())
    loss = weight_space(merge, network, CrossEntropy())
    result = fit(merge.init(others), loss, others, [(x, labels)], optax.adam(0.1), steps=30)
    before, after = (evaluate(network, merge.apply(t, others), [(x, labels)]) for t in (merge.init(others), result.theta))
    assert after.loss < 0.9 * before.loss
    assert merge.apply(result.theta, others).keys() == a.keys()


def test_what_is_not_needed_is_not_asked_for():
    """No training mode, no statistics, no paths with slashes."""
    weights = initial(0)
    x = jnp.ones((4, 5))
    assert reset_statistics(lambda v, x: (network(v, x), v), weights, [(x, None)]) is weights
    assert Average in METHODS
