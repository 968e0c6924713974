"""A routed network is one like any other: it is learned, judged, traced, saved, measured."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import npmerge as nm
from alignment.graph import flatten
from npmerge.fitting.memory import predicted_bytes
from tests.npmerge.routing.networks import DEPTH, HIDDEN, OUTPUTS, PATTERN, WIDTH, apply, experts, inputs

MODELS, X = experts(2), inputs()
LABELS = np.array([[0, 1, 0], [1, 1, 0]])
BATCHES = [(X, LABELS)]
ROUTED = nm.route(apply, MODELS, PATTERN, X)
LOSS = nm.fine_tuning(ROUTED.apply, nm.CrossEntropy())
ADAMW = optax.adamw(0.1, weight_decay=0.1)


def is_router(path):
    return path.startswith("router/")


def test_gradients_reach_the_router_alone():
    gradient = flatten(jax.jit(jax.grad(LOSS), static_argnums=1)(ROUTED.variables, None, BATCHES[0]))
    assert {path: bool(jnp.any(g)) for path, g in gradient.items()} == {path: is_router(path) for path in gradient}


@pytest.mark.parametrize("around", [lambda f: f, nm.remat], ids=["as it is", "remat"])
def test_fit_learns_the_router_and_leaves_the_rest_bit_for_bit(around):
    loss = nm.fine_tuning(around(ROUTED.apply), nm.CrossEntropy())
    found = nm.fit(ROUTED.variables, loss, None, BATCHES, ADAMW, steps=10, held_out=BATCHES)
    before, after = flatten(ROUTED.variables), flatten(found.theta)
    for path, x in before.items():
        assert np.array_equal(after[path], x) != is_router(path), path
    assert (
        nm.evaluate(ROUTED.apply, found.theta, BATCHES).loss < 0.8 * nm.evaluate(ROUTED.apply, ROUTED.variables, BATCHES).loss
    )


def test_weights_of_feature_averaging_are_learned_too():
    routed = nm.route(apply, MODELS, PATTERN, X, nm.FeatureAveraging())
    loss = nm.weighted_sum((nm.fine_tuning(routed.apply, nm.CrossEntropy()),))
    found = nm.fit(routed.variables, loss, None, BATCHES, ADAMW, steps=2).theta
    assert not np.array_equal(found["router"]["weights"], routed.variables["router"]["weights"])
    np.testing.assert_array_equal(found["trunk"]["head"], MODELS[0]["head"])


def test_everything_is_learned_where_it_is_asked_for():
    routed = nm.route(apply, MODELS, PATTERN, X, router_only=False)
    loss = nm.fine_tuning(routed.apply, nm.CrossEntropy())
    found = nm.fit(routed.variables, loss, None, BATCHES, ADAMW, steps=2).theta
    assert not [path for path, x in flatten(routed.variables).items() if np.array_equal(flatten(found)[path], x)]


def test_the_optimiser_has_moments_of_the_router_alone():
    sizes = predicted_bytes(LOSS, ADAMW, ROUTED.variables, None, BATCHES[0], plan=False)
    router = 4 * DEPTH * WIDTH * 2
    assert sizes.moments == 2 * router + 4 and sizes.theta == 4 * len(leaves()) + router


def leaves():
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(ROUTED.variables)])


def test_nothing_that_is_not_frozen():
    frozen = {**ROUTED.variables, "router": {}}
    with pytest.raises(ValueError, match=r"^nothing to learn: theta has no floating-point leaves, or all are frozen$"):
        nm.fit(frozen, LOSS, None, BATCHES, ADAMW, steps=1)


def test_it_is_saved_and_read(tmp_path):
    nm.checkpoint.save(tmp_path / "routed.safetensors", ROUTED.variables, {"seed": 0})
    read = nm.checkpoint.load(tmp_path / "routed.safetensors")
    np.testing.assert_array_equal(ROUTED.apply(read, X), ROUTED.apply(ROUTED.variables, X))


def test_it_is_traced_and_collected_from():
    """The units of each expert are its own; the symmetry of all of them is that of the function."""
    graph = nm.trace(ROUTED.apply, ROUTED.variables, X)
    hidden = {f"experts/{k}/blocks/{d}/mlp" for k in range(2) for d in range(DEPTH)}
    assert {name: graph.nodes[name].size for name in graph.nodes} == dict.fromkeys(hidden, HIDDEN)
    assert nm.verify(ROUTED.apply, graph, ROUTED.variables, X, key=jax.random.key(0)) < 1e-5
    grams = nm.collect(ROUTED.apply, graph, [ROUTED.variables], BATCHES, [nm.InputGram()])[nm.InputGram]
    assert grams["experts/1/blocks/2/mlp/down"].gram.shape == (1, HIDDEN, HIDDEN)


def test_operations_are_those_of_all_experts():
    one, tokens = nm.flops(apply, MODELS[0], X), X.shape[0] * X.shape[1]
    branch = nm.flops(lambda m, x: jnp.tanh(x @ m["up"] + m["bias"][None, None]) @ m["down"], MODELS[0]["blocks"][0]["mlp"], X)
    for layers in (1, 2):
        routed = nm.route(apply, MODELS, PATTERN, X, nm.Router(layers=layers))
        pool = 2 * layers
        router = 2 * tokens * WIDTH * pool
        mixing = 2 * tokens * WIDTH * pool
        least = one + DEPTH * ((pool - 1) * branch + router + mixing - tokens * WIDTH)
        softmax = 6 * tokens * pool
        assert least <= nm.flops(routed.apply, routed.variables, X) <= least + DEPTH * softmax


def test_parameters_are_those_of_one_trunk_all_experts_and_the_router():
    own = DEPTH * (2 * WIDTH * HIDDEN + HIDDEN)
    trunk = nm.parameters(MODELS[0]) - own
    assert trunk == DEPTH * WIDTH + WIDTH * OUTPUTS
    for layers in (1, 2):  # the experts of neighbours are those that are there
        routed = nm.route(apply, MODELS, PATTERN, X, nm.Router(layers=layers))
        assert nm.parameters(routed.variables) == trunk + 2 * own + DEPTH * WIDTH * 2 * layers
    single = nm.route(apply, MODELS, PATTERN, X, nm.Router(shared=True))
    assert nm.parameters(single.variables) == trunk + 2 * own + WIDTH * 2
