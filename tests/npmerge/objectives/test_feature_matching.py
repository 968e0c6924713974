"""Features layer by layer, against float64 numpy on the small network, and on real architectures by identities."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import npmerge as nm
from alignment import WeightMatching
from npmerge.models import Gpt2, ResNetCifar, build
from tests.npmerge.toys import apply, batch, float64, permuted, variables

MODELS = [variables(k) for k in range(3)]
STACK = nm.stack_models(MODELS)
MERGED = variables(7)
X = batch(0)[0]
GRAPH = nm.trace(apply, MODELS[0], X)
NODE = "first"


def layers64(model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the second layer reads, and what both make."""
    m = float64(model)
    made = x @ m["first"]["kernel"] + m["first"]["bias"]
    read = np.maximum(made, 0)
    return read, made, read @ m["out"]["kernel"] + m["out"]["bias"]


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.square(ours - theirs).sum() / np.square(theirs).sum())


def value(objective, params=MERGED, data=(X, None), stack=STACK) -> float:
    return float(objective(apply, params, stack, data))


def hidden(model, x=X) -> np.ndarray:
    """The features of the node, as the tap gives them."""
    return np.asarray(nm.capture(apply, GRAPH, model, x, nodes=NODE).nodes[NODE], np.float64)


def test_sequential_features_are_those_of_the_nodes():
    assert list(GRAPH.taps) == [NODE]
    x = np.asarray(X, np.float64)
    read, made, _ = layers64(MERGED, x)
    tapped = hidden(MERGED)
    assert min(np.abs(tapped - side).max() for side in (read, made, made - float64(MERGED)["first"]["bias"])) < 1e-5
    assert value(nm.FeatureMatching(GRAPH, 1)) == pytest.approx(relative(tapped, hidden(MODELS[1])), rel=1e-4)
    mean = np.mean([hidden(m) for m in MODELS], axis=0)
    assert value(nm.FeatureMatching(GRAPH)) == pytest.approx(relative(tapped, mean), rel=1e-4)


def test_teacher_forced_layers_read_what_they_read_in_the_teacher():
    x, m = np.asarray(X, np.float64), float64(MERGED)
    for teacher, models in ((2, MODELS[2:]), ("mean", MODELS)):
        found = [layers64(model, x) for model in models]
        read, made, out = (np.mean([f[k] for f in found], axis=0) for k in range(3))
        first = relative(x @ m["first"]["kernel"] + m["first"]["bias"], made)
        last = relative(read @ m["out"]["kernel"] + m["out"]["bias"], out)
        objective = nm.FeatureMatching(GRAPH, teacher, sequential=False)
        assert value(objective) == pytest.approx((first + last) / 2, rel=1e-4)
        only = nm.FeatureMatching(GRAPH, teacher, sequential=False, names=("out/kernel",))
        assert value(only) == pytest.approx(last, rel=1e-4)


def test_teacher_forced_layers_learn_apart():
    gradient = jax.grad(lambda p: nm.FeatureMatching(GRAPH, 0, False, ("out/kernel",))(apply, p, STACK, (X, None)))(MERGED)
    chex.assert_trees_all_equal(gradient["first"], jax.tree.map(jnp.zeros_like, gradient["first"]))
    assert float(jnp.abs(gradient["out"]["bias"]).max()) > 1e-4


@pytest.mark.parametrize("sequential", [True, False])
def test_a_network_equal_to_its_teacher_has_nothing_to_learn(sequential):
    objective = nm.FeatureMatching(GRAPH, 1, sequential)
    assert value(objective, MODELS[1]) == pytest.approx(0, abs=1e-10)
    gradient = jax.grad(lambda p: objective(apply, MERGED, STACK._replace(params=p), (X, None)))(STACK.params)
    chex.assert_trees_all_equal(gradient, jax.tree.map(jnp.zeros_like, gradient))  # none into the teachers


def test_units_must_be_aligned():
    turned = permuted(MODELS[0], np.arange(6)[::-1])
    stack = nm.stack_models([MODELS[0], turned])
    assert value(nm.FeatureMatching(GRAPH, 1), MODELS[0], stack=stack) > 0.1
    aligned = nm.stack_models(nm.align(WeightMatching(), GRAPH, [MODELS[0], turned]))
    assert value(nm.FeatureMatching(GRAPH, 1), MODELS[0], stack=aligned) == pytest.approx(0, abs=1e-9)


def test_a_dead_teacher_divides_by_nothing():
    dead = jax.tree.map(jnp.zeros_like, MODELS[0])
    stack = nm.stack_models([dead, dead])
    value, gradient = jax.value_and_grad(lambda p: nm.FeatureMatching(GRAPH)(apply, p, stack, (X, None)))(MERGED)
    chex.assert_tree_all_finite((value, gradient))
    assert float(value) == pytest.approx(np.square(hidden(MERGED)).mean(), rel=1e-4)


def test_each_model_on_its_own_task():
    tasks = tuple(batch(k, 4 + k) for k in range(3))
    for sequential in (True, False):
        own = nm.Joint(nm.FeatureMatching(GRAPH, "own", sequential))
        each = [value(nm.FeatureMatching(GRAPH, m, sequential), data=tasks[m]) for m in range(3)]
        assert float(own(apply, MERGED, STACK, tasks)) == pytest.approx(np.mean(each), rel=1e-5)


def test_layers_alone_can_be_learned_to_the_regression():
    """Teacher-forced with a merge of all weights free ends where each layer's least squares do."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32), np.float32)
    objective = nm.FeatureMatching(GRAPH, 1, False, ("out/kernel",))
    loss = nm.fine_tuning(apply, objective)
    result = nm.fit(MERGED, loss, STACK, [(x, None)], optax.adam(0.05), steps=400)
    chex.assert_trees_all_close(result.theta["out"], MODELS[1]["out"], atol=0.05)
    assert result.history.loss[-1] < 1e-3 < result.history.loss[0]


@pytest.mark.parametrize("sequential", [True, False])
def test_convolutions_and_attention_with_padding(sequential):
    images = jnp.asarray(np.random.default_rng(1).standard_normal((3, 4, 4, 3)).astype(np.float32), np.float32)
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, 16, (3, 6)).astype(np.int32), np.int32)
    for config, inputs in (
        (ResNetCifar(blocks=1, width=2, side=4), images),
        (Gpt2(vocabulary=16, width=8, layers=1, heads=2, hidden=8, length=6), tokens),
    ):
        network, models = build(config), [build(config, seed=k).variables for k in range(2)]
        graph = nm.trace(network.apply, models[0], inputs)
        objective, stack = nm.FeatureMatching(graph, 1, sequential), nm.stack_models(models)
        run = jax.jit(lambda p, b, o=objective, n=network, s=stack: o(n.apply, p, s, b))
        assert float(run(models[1], (inputs[:2], None))) == pytest.approx(0, abs=1e-8)
        plain = float(run(models[0], (inputs[:2], None)))
        assert plain > 0.1
        assert float(run(models[0], (inputs, None, jnp.array([True, True, False])))) == pytest.approx(plain, rel=1e-3)


def test_bad_input():
    with pytest.raises(ValueError, match=r"FeatureMatching takes \(graph\), got \(str\)"):
        nm.FeatureMatching("graph")
    with pytest.raises(ValueError, match="the teacher of FeatureMatching must be"):
        nm.FeatureMatching(GRAPH, "all")
    with pytest.raises(ValueError, match="FeatureMatching takes True or False as sequential, got 'yes'"):
        nm.FeatureMatching(GRAPH, sequential="yes")
    with pytest.raises(ValueError, match="unknown node 'frist': the nearest is 'first'"):
        nm.FeatureMatching(GRAPH, names=("frist",))
    with pytest.raises(ValueError, match="unknown site 'first': the nearest is 'first/kernel'"):
        nm.FeatureMatching(GRAPH, sequential=False, names="first")
    with pytest.raises(ValueError, match="nothing to compare: the graph has no node"):
        nm.FeatureMatching(GRAPH, names=())
    check = nm.FeatureMatching(GRAPH).checker
    with pytest.raises(ValueError, match="variables do not fit the graph at 'first/bias'"):
        check(apply, MERGED | {"first": {"kernel": jnp.zeros((4, 5)), "bias": jnp.zeros(5)}}, STACK, (X, None))
    with pytest.raises(ValueError, match="is not where it was traced"):
        check(lambda v, x: x, MERGED, STACK, (X, None))
    with pytest.raises(ValueError, match="got no stack"):
        check(apply, MERGED, None, (X, None))
