"""Objectives against float64 numpy, and the losses that are built of them."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment import Alignment, NodeMap, identity, trace
from npmerge import (
    Average,
    CrossEntropy,
    Distillation,
    Entropy,
    EqualShares,
    Learned,
    PerTensor,
    Simplex,
    WeightDistance,
    along_line,
    fine_tuning,
    fit,
    np_merge,
    stack_models,
    weight_space,
    weighted_sum,
)
from npmerge.objectives import check_labels
from npmerge.objectives.base import mean_over_batches
from tests.npmerge.toys import apply, array, batch, log_softmax64, logits64, variables

MODELS = [variables(k) for k in range(3)]
STACK = stack_models(MODELS)
X, LABELS = batch(0)


@pytest.mark.parametrize(
    ("terms", "value"),
    [
        ([[(2.0, 1.0)], [(5.0, 3.0)]], 4.25),
        ([[(2.0, 1.0), (1.0, 2.0)], [(5.0, 3.0), (4.0, 2.0)]], 4.25 + 2.5),
        ([[(np.nan, 0.0)], [(5.0, 3.0)]], 5.0),  # a batch of padding alone has no mean
        ([[(np.nan, 0.0), (3.0, 1.0)], [(np.nan, 0.0), (4.0, 1.0)]], 3.5),
    ],
)
def test_each_term_is_the_mean_over_its_examples(terms, value):
    assert mean_over_batches(terms) == value


def test_labels_of_padding_may_be_no_class():
    """Not even a NaN on the way, at which JAX can be told to stop."""
    x, labels = jnp.eye(3), jnp.array([0, 1, 9])
    with jax.debug_nans(True):
        value = CrossEntropy()(lambda v, x: x @ v, jnp.zeros((3, 4)), None, (x, labels, jnp.array([True, True, False])))
    assert float(value) == pytest.approx(np.log(4))


def cross_entropy64(model) -> float:
    return float(-log_softmax64(logits64(model, X))[np.arange(len(X)), np.asarray(LABELS)].mean())


def test_cross_entropy():
    got = CrossEntropy()(apply, MODELS[0], None, (X, LABELS))
    assert got.shape == ()
    assert float(got) == pytest.approx(cross_entropy64(MODELS[0]), rel=1e-5)


@pytest.mark.parametrize("t", [1.0, 2.5])
def test_distillation(t):
    teacher = np.mean([np.exp(log_softmax64(logits64(m, X) / t)) for m in MODELS], axis=0)
    student = log_softmax64(logits64(variables(7), X) / t)
    expected = t**2 * (teacher * (np.log(teacher) - student)).sum(-1).mean()
    got = Distillation(t)(apply, variables(7), STACK, (X, LABELS))
    assert float(got) == pytest.approx(expected, rel=1e-4)
    assert float(got) > 0.01
    assert float(Distillation(t)(apply, variables(7), STACK, (X, None))) == float(got)  # labels are not read


def test_entropy():
    logs = log_softmax64(logits64(MODELS[0], X))
    assert float(Entropy()(apply, MODELS[0], None, (X, None))) == pytest.approx(-(np.exp(logs) * logs).sum(-1).mean(), rel=1e-5)
    flat = jax.tree.map(jnp.zeros_like, MODELS[0])
    assert float(Entropy()(apply, flat, None, (X, None))) == pytest.approx(np.log(3), rel=1e-6)
    sure = flat | {"out": flat["out"] | {"bias": jnp.asarray([1e4, 0.0, -1e4])}}  # one class, beyond what exp can hold
    value, gradient = jax.value_and_grad(lambda p: Entropy()(apply, p, None, (X, None)))(sure)
    assert float(value) == 0
    chex.assert_tree_all_finite(gradient)


def test_a_student_equal_to_all_its_teachers_has_nothing_to_learn():
    stack = stack_models([MODELS[0]] * 3)
    value, gradient = jax.value_and_grad(lambda p: Distillation(2.0)(apply, p, stack, (X, None)))(MODELS[0])
    assert abs(float(value)) < 1e-6
    chex.assert_trees_all_close(gradient, jax.tree.map(jnp.zeros_like, gradient), atol=1e-6)


def test_no_gradient_flows_into_the_teachers():
    merge = Average()

    def loss(params):
        """The stack given to the objective, not to the merge."""
        return Distillation()(apply, MODELS[0], stack_models(MODELS)._replace(params=params), (X, None))

    gradient = jax.grad(loss)(STACK.params)
    chex.assert_trees_all_equal(gradient, jax.tree.map(jnp.zeros_like, gradient))
    assert merge == Average()


def test_distillation_needs_a_stack():
    with pytest.raises(ValueError, match="Distillation needs the models to distil from: got no stack"):
        Distillation()(apply, MODELS[0], None, (X, None))


def test_weight_space_is_the_objective_of_the_merged_network():
    merge = Learned(Average(), PerTensor(), Simplex())
    loss = weight_space(merge, apply, CrossEntropy())
    mean = jax.tree.map(lambda *x: np.mean(np.asarray(x, np.float64), axis=0), *MODELS)
    assert float(loss(merge.init(STACK), STACK, (X, LABELS))) == pytest.approx(cross_entropy64(mean), rel=1e-5)
    assert (loss, hash(loss)) == (weight_space(merge, apply, CrossEntropy()), hash(weight_space(merge, apply, CrossEntropy())))
    with pytest.raises(ValueError, match="a merge needs the stack of models it merges"):
        loss(merge.init(STACK), None, (X, LABELS))


def test_fine_tuning_is_the_objective_itself():
    loss = fine_tuning(apply, CrossEntropy())
    assert float(loss(MODELS[1], None, (X, LABELS))) == pytest.approx(cross_entropy64(MODELS[1]), rel=1e-5)
    assert loss == fine_tuning(apply, CrossEntropy())


def test_fine_tuning_leaves_running_statistics_as_they_are():
    """Also where the network reads them, as in evaluation mode; NNX calls them mean and var beside weights of any name."""

    def normed(v, x):
        return (x - v["bn"]["mean"]) / jnp.sqrt(v["bn"]["var"]) @ v["params"]["mean"]

    start = {
        "bn": {"mean": jnp.full((1, 4), 0.5), "var": jnp.full((1, 4), 2.0)},
        "params": {"mean": jnp.tile(jnp.arange(3.0), (4, 1))},
    }
    result = fit(start, fine_tuning(normed, CrossEntropy()), None, [(X, LABELS)], optax.sgd(0.1), steps=2)
    chex.assert_trees_all_equal(result.theta["bn"], start["bn"])
    assert float(jnp.abs(result.theta["params"]["mean"] - start["params"]["mean"]).max()) > 1e-3


def test_labels_are_checked():
    logits = jax.ShapeDtypeStruct((2, 3), "float32")
    check_labels(np.array([0, 2]), logits)
    check_labels(np.array([], np.int32), logits)
    with pytest.raises(ValueError, match="labels out of range: got 0 to 3, expected 0 to 2"):
        check_labels(np.array([0, 3]), logits)
    with pytest.raises(ValueError, match="labels out of range: got -1 to 2"):
        check_labels(np.array([-1, 2]), logits)
    with pytest.raises(ValueError, match="labels must be integers, got floating-point numbers"):
        check_labels(np.array([0.0]), logits)
    with pytest.raises(ValueError, match=r"labels must be one per prediction, of shape \(2,\): got \(2, 1\)"):
        check_labels(np.array([[0], [1]]), logits)
    with pytest.raises(ValueError, match="apply must return logits"):
        check_labels(np.array([0, 1]), (logits, logits))
    for loss in (fine_tuning(apply, CrossEntropy()), weight_space(Average(), apply, CrossEntropy())):
        theta = MODELS[0] if loss == fine_tuning(apply, CrossEntropy()) else Average().init(STACK)
        check = loss.checker(theta, STACK, (X, LABELS))
        check((X, LABELS))
        with pytest.raises(ValueError, match="expected 0 to 2"):
            check((X, LABELS + 1))
    fine_tuning(apply, Distillation()).checker(MODELS[0], STACK, (X, None))((X, LABELS + 1))  # reads no labels


# ------------------------------------------------------------------------------------------ losses of alignments' theta


@dataclasses.dataclass(frozen=True)
class Halved(Alignment):
    """A toy: every node of the other models is scaled by its theta."""

    def init(self, graph, models, *, stats=None, key=None):
        return [jnp.float32(1.0)] * len(models)

    def maps(self, theta, graph):
        eyes = {name: identity(node.size) for name, node in graph.nodes.items()}
        return [{}, *({n: NodeMap(m.push * s, m.pull / s) for n, m in eyes.items()} for s in theta[1:])]


GRAPH = trace(apply, MODELS[0], X)


def cross_entropy_between(a, b, t: float) -> float:
    return cross_entropy64(jax.tree.map(lambda x, y: (1 - t) * np.asarray(x) + t * np.asarray(y), a, b))


def test_the_line_loss_is_the_objective_at_one_point_of_each_line():
    loss = along_line(Halved(), GRAPH, apply, CrossEntropy(), interval=(0.4, 0.8))
    theta = Halved().init(GRAPH, MODELS)
    middle = np.mean([cross_entropy_between(MODELS[0], m, 0.6) for m in MODELS[1:]])
    assert float(loss(theta, STACK, (X, LABELS))) == pytest.approx(middle, rel=1e-4)
    key = jax.random.key(3)
    t = float(jax.random.uniform(key, (), jnp.float32, 0.4, 0.8))
    drawn = np.mean([cross_entropy_between(MODELS[0], m, t) for m in MODELS[1:]])
    assert float(loss(theta, STACK, (X, LABELS), key=key)) == pytest.approx(drawn, rel=1e-4)
    assert abs(drawn - middle) > 1e-4


@pytest.mark.parametrize("interval", [(-0.1, 1.0), (0.6, 0.4), (0.5, 1.1)])
def test_a_line_ends_at_the_models(interval):
    with pytest.raises(ValueError, match=r"interval must be two numbers, ordered and within \[0, 1\]"):
        along_line(Halved(), GRAPH, apply, CrossEntropy(), interval=interval)


def test_an_interval_in_a_list_is_one_in_a_tuple():
    """Or `fit`, which compiles for each loss, would find no hash."""
    losses = [along_line(Halved(), GRAPH, apply, CrossEntropy(), interval=kind((0.4, 0.6))) for kind in (list, tuple)]
    assert hash(losses[0]) == hash(losses[1])


def test_a_line_needs_two_models():
    alone = stack_models(MODELS[:1])
    loss = along_line(Halved(), GRAPH, apply, CrossEntropy())
    with pytest.raises(ValueError, match="a line needs two models at least: got a stack of 1"):
        loss.checker(Halved().init(GRAPH, MODELS[:1]), alone, (X, LABELS))


def test_the_weight_distance_is_the_mean_squared_difference():
    theta = Halved().init(GRAPH, MODELS)
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(m)]) for m in MODELS]
    expected = np.mean([np.square(flat[0] - other) for other in flat[1:]])
    assert float(WeightDistance(Halved(), GRAPH)(theta, STACK, ())) == pytest.approx(expected, rel=1e-5)
    gradient = jax.grad(WeightDistance(Halved(), GRAPH))(theta, STACK, ())
    assert float(gradient[0]) == 0.0
    assert float(jnp.abs(gradient[1])) > 1e-6


# ------------------------------------------------------------------------------------------------------ labels of tokens


def test_every_token_may_have_a_label():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32), np.float32)
    labels = jnp.array([[0, 3, 1], [2, 2, 0]])
    got = CrossEntropy()(lambda v, x: logits, None, None, (X, labels))
    expected = -log_softmax64(np.asarray(logits, np.float64).reshape(6, 4))[np.arange(6), np.ravel(labels)].mean()
    assert float(got) == pytest.approx(expected, rel=1e-5)
    check_labels(labels, logits)
    check_labels(labels[:1], logits)  # the last batch may be smaller
    with pytest.raises(ValueError, match=r"one per prediction, of shape \(2, 3\): got \(2,\)"):
        check_labels(labels[:, 0], logits)


def test_running_statistics_have_no_gradient_that_a_clipped_norm_would_count():
    loss = fine_tuning(lambda v, x: x @ v["w"] + v["mean"], CrossEntropy())
    variables = {"w": jnp.zeros((2, 2), np.float32), "mean": jnp.zeros((1, 2), np.float32)}
    gradient = jax.grad(loss)(variables, None, (np.ones((2, 2), np.float32), np.array([0, 0])))
    assert np.any(gradient["w"])
    assert not np.any(gradient["mean"])


def norm(v, x):
    """A norm in evaluation mode."""
    return (x - v["batch_stats"]["mean"][None]) * v["gain"][None]


def norm_in_training(v, x):
    new = 0.9 * v["batch_stats"]["mean"] + 0.1 * x.mean(0)
    return (x - x.mean(0)[None]) * v["gain"][None], {**v, "batch_stats": {"mean": new}}


@pytest.mark.parametrize("summed", [False, True])
def test_a_merge_that_is_learned_on_averaged_statistics_is_warned_of(summed):
    stack = stack_models([{"gain": jnp.full(3, k), "batch_stats": {"mean": jnp.full(3, k)}} for k in (1.0, 2.0)])
    data, merge = [(array(k, n, 3), jnp.zeros(n, jnp.int32)) for k, n in ((0, 4), (1, 2))], np_merge()

    def fitted(apply):
        loss = weight_space(merge, apply, CrossEntropy())
        loss = weighted_sum((loss, EqualShares(merge))) if summed else loss
        return fit(merge.init(stack), loss, stack, data, optax.sgd(0.1), steps=2, held_out=data)

    fitted(lambda v, x: norm_in_training(v, x)[0])  # warnings are errors
    said = (
        r"running statistics such as 'batch_stats/mean' are interpolated .*train_apply\(v, x\)\[0\].* and call reset_statistics"
    )
    with pytest.warns(UserWarning, match=said) as told:
        fitted(norm)
    assert len(told) == 1
