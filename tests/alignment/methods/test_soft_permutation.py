"""Soft permutations: data-free, through `fit`, and together with coefficients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import alignment
import npmerge as nm
from alignment import CCA, ActivationMatching, Procrustes, SoftPermutation, WeightMatching, annealed, sinkhorn, weight_distance
from npmerge.paths import path_between
from tests.npmerge import toys

A = toys.variables(0)
ORDER = np.array([3, 0, 5, 1, 4, 2])
B = toys.permuted(A, ORDER)
SOFT = SoftPermutation(steps=0)
BATCH = toys.array(1, 64, toys.SIZES[0]), jnp.argmax(toys.apply(A, toys.array(1, 64, toys.SIZES[0])), axis=1)


@pytest.fixture(scope="module")
def graph():
    return nm.trace(toys.apply, A, jnp.zeros((2, toys.SIZES[0])))


def push(alignment, theta, graph):
    return np.asarray(alignment.maps(theta, graph)[1]["first"].push)


def test_planted_permutations_are_recovered_without_data(graph):
    """With the loss of the weights alone. Deeper networks, and units inside exchanged heads, are in the contract tests."""
    theta = SoftPermutation().init(graph, [A, B])
    assert theta[0] == {}
    np.testing.assert_array_equal(
        push(SoftPermutation(), SoftPermutation().rounded(theta), graph), np.eye(6)[np.argsort(ORDER)]
    )


def test_maps_are_doubly_stochastic_and_rounded_ones_exactly_permutations(graph):
    theta = SOFT.init(graph, [A, B])
    soft, (_, hard) = SOFT.maps(theta, graph)[1]["first"], SOFT.maps(SOFT.rounded(theta), graph)
    np.testing.assert_allclose(soft.push.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(soft.push.sum(-2), 1, rtol=1e-4)
    np.testing.assert_array_equal(soft.pull, soft.push.T)
    assert soft.push.min() > 0.01 and soft.push.max() < 0.9
    assert set(np.unique(hard["first"].push)) == {0.0, 1.0}
    np.testing.assert_array_equal(hard["first"].push @ hard["first"].pull, np.eye(6))
    chex.assert_trees_all_equal(SOFT.rounded(SOFT.rounded(theta)), SOFT.rounded(theta))


def test_rounding_assigns_where_two_rows_prefer_the_same_unit():
    logits = np.float32([[2, 1.9, 0], [2, 0, 0], [0, 0, 1]])
    hard = SOFT.rounded([{}, {"node": logits}])[1]["node"]
    np.testing.assert_array_equal(hard > 0, np.eye(3)[[1, 0, 2]] > 0)


def test_without_a_start_logits_are_the_identity_and_noise(graph):
    logits = SOFT.init(graph, [A, B])[1]["first"]
    noise = (logits - np.eye(6)) / 0.1
    assert np.abs(noise).max() < 4 and 0.6 < noise.std() < 1.4


def test_every_node_has_noise_of_its_own_whatever_other_nodes_there_are():
    def logits(*names):
        nodes = {name: alignment.Node(name, 6, "permutation") for name in names}
        return SOFT.init(alignment.Graph(nodes, {}, (), {}, (), {}), [None, None])[1]

    both = logits("a", "b")
    assert float(jnp.abs(both["a"] - both["b"]).max()) > 0.1
    chex.assert_trees_all_equal(logits("b")["b"], both["b"])


@pytest.mark.parametrize("temperature", [(1.0, 1.0), (1.0, 0.05)])
def test_a_start_is_kept_soft_and_comes_back_when_rounded(graph, temperature):
    """Nine tenths of each unit at the place that weight matching chose, at whatever temperature `maps` uses."""
    soft = SoftPermutation(start=WeightMatching(), steps=0, temperature=temperature)
    theta, expected = soft.init(graph, [A, B]), push(WeightMatching(), WeightMatching().init(graph, [A, B]), graph)
    share = push(soft, theta, graph)[expected == 1]
    assert 0.8 < share.min() < share.max() < 0.95
    np.testing.assert_array_equal(push(soft, soft.rounded(theta), graph), expected)
    assert soft.needs == () and SoftPermutation(start=ActivationMatching()).needs == ActivationMatching.needs


def test_init_descends_on_the_distance_of_the_weights_as_fit_would(graph):
    models, steps = [A, toys.variables(1)], 12
    start, loss = SOFT.init(graph, models), nm.WeightDistance(SOFT, graph)
    fitted = nm.fit(start, loss, nm.stack_models(models), [()], optax.adam(0.1, eps=1e-16), steps=steps)
    theta = SoftPermutation(steps=steps).init(graph, models)
    chex.assert_trees_all_close(theta, fitted.theta, atol=1e-3)
    assert float(weight_distance(SOFT, graph, theta, models)) < 0.97 * fitted.history.loss[0]


def test_one_learning_rate_suits_weights_of_every_size(graph):
    """The distance is a mean of squares: of weights a thousand times smaller its gradients are below Adam's usual epsilon."""
    models, few = [A, toys.variables(1)], SoftPermutation(steps=5)
    small = jax.tree.map(lambda x: x / 1024, models)
    chex.assert_trees_all_close(few.init(graph, small), few.init(graph, models), atol=1e-4)


def test_the_temperature_falls_geometrically_to_the_one_of_maps(graph):
    """Against steps by hand, in which the logits are divided by the temperature of the step."""
    models, soft = [A, toys.variables(1)], SoftPermutation(steps=3, temperature=(2.0, 0.5))
    theta, adam = SOFT.init(graph, models), optax.adam(0.1, eps=1e-16)
    state = adam.init(theta)
    slope = jax.jit(jax.grad(lambda x, t: weight_distance(SOFT, graph, jax.tree.map(lambda x: x / t, x), models)))
    for t in (2.0, 1.0, 0.5):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = adam.update(slope(theta, t), state)
        theta = optax.apply_updates(theta, updates)
    chex.assert_trees_all_close(soft.init(graph, models), theta, atol=1e-4)
    np.testing.assert_allclose(push(soft, theta, graph), sinkhorn(theta[1]["first"] / 0.5), atol=1e-6)


def test_the_key_decides_and_no_key_is_one_of_them(graph):
    first, again, other, none = (SOFT.init(graph, [A, B], key=k) for k in (*map(jax.random.key, (1, 1, 2)), None))
    chex.assert_trees_all_equal(first, again)
    chex.assert_trees_all_equal(none, SOFT.init(graph, [A, B]))
    assert bool(jnp.any(first[1]["first"] != other[1]["first"]))


def barrier(a, b):
    return path_between(toys.apply, a, b, [BATCH], points=5).barrier


def test_the_midpoint_loss_recovers_a_planted_permutation(graph):
    """Learned with data, from a start that knows nothing, then rounded."""
    loss = nm.along_line(SOFT, graph, toys.apply, nm.Distillation(), interval=(0.5, 0.5))
    theta = SOFT.init(graph, [A, B])
    result = nm.fit(theta, loss, nm.stack_models([A, B]), [BATCH], optax.adam(0.1), steps=150)
    moved = nm.transport(graph, SOFT.maps(SOFT.rounded(result.theta), graph)[1], B)
    chex.assert_trees_all_equal(moved, A)
    assert barrier(A, B) > 0.01
    assert barrier(A, moved) < 1e-5


def test_alignment_and_coefficients_are_learned_together(graph):
    learned = nm.Learned(nm.Average(), nm.PerTensor(), nm.Simplex())
    merge, stack = nm.Aligned(SOFT, learned, graph), nm.stack_models([A, toys.variables(1)])
    theta = merge.init(stack)
    cooling = optax.masked(annealed(optax.exponential_decay(1.0, 40, 0.5)), {"alignment": True, "merge": False})
    loss = nm.weight_space(merge, toys.apply, nm.CrossEntropy())
    result = nm.fit(theta, loss, stack, [BATCH], optax.chain(optax.adam(0.05), cooling), steps=40)
    for part in ("alignment", "merge"):
        for before, after in zip(jax.tree.leaves(theta[part]), jax.tree.leaves(result.theta[part]), strict=True):
            assert float(jnp.abs(after - before).max()) > 0.01, part
    assert result.history.loss[-1] < 0.9 * result.history.loss[0]
    assert result.status == "finished"


@pytest.mark.parametrize("schedule", [optax.exponential_decay(2.0, 1, 0.7), optax.linear_schedule(2.0, 0.5, 4)])
def test_annealing_the_logits_is_lowering_the_temperature(schedule):
    optimizer = optax.chain(optax.sgd(1.0), annealed(schedule))
    theta = start = {"node": toys.array(3, 4, 4)}
    state = optimizer.init(theta)
    for _ in range(3):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, theta), state, theta)
        theta = optax.apply_updates(theta, updates)
    now = sinkhorn(theta["node"] / schedule(0))
    np.testing.assert_allclose(now, sinkhorn(start["node"] / schedule(3)), atol=1e-6)
    assert float(jnp.abs(now - sinkhorn(start["node"] / schedule(0))).max()) > 0.05
    updates, _ = annealed(optax.constant_schedule(1.0)).update(start, optimizer.init(start)[1], theta)
    chex.assert_trees_all_equal(updates, start)


def test_the_logits_are_scaled_and_then_updated():
    """An update is of the size of the logits at the temperature that follows, so the step itself is not scaled."""
    theta, step = toys.array(3, 4, 4), toys.array(4, 4, 4)
    cooling = annealed(optax.linear_schedule(2.0, 0.5, 4))
    updates, _ = cooling.update(step, cooling.init(theta), theta)
    np.testing.assert_allclose(optax.apply_updates(theta, updates), 2.0 / 1.625 * theta + step, rtol=1e-6)


def test_temperatures_in_a_list_are_those_in_a_tuple():
    """Or `align`, which compiles for each alignment, would find no hash."""
    assert hash(SoftPermutation(temperature=[1.0, 0.5])) == hash(SoftPermutation(temperature=(1.0, 0.5)))


def test_bad_input_is_named(graph):
    for bad in ((1.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="temperature must be a finite number above 0, got"):
            SoftPermutation(temperature=bad)
    for bad in ((1.0,), 1.0):
        with pytest.raises(ValueError, match="temperature must be two positive numbers"):
            SoftPermutation(temperature=bad)
    for name, bad in {"iterations": 0, "steps": -1, "learning_rate": 0.0}.items():
        with pytest.raises(ValueError, match=f"{name} must be .*, got {bad}"):
            SoftPermutation(**{name: bad})
    with pytest.raises(ValueError, match="start must be an alignment or None, got 'weights'"):
        SoftPermutation(start="weights")
    theta = SOFT.init(graph, [A, B])
    theta[1]["first"] = theta[1]["first"].at[0, 0].set(jnp.nan)
    for function in (SOFT.rounded, functools.partial(SOFT.maps, graph=graph)):
        with pytest.raises(ValueError, match="logits has 1 non-finite values of 36 in '1/first'"):
            function(theta)
    stats = nm.collect(toys.apply, graph, [A, B], [BATCH], [nm.NodeMoments()])
    for start in (Procrustes(approximate=True), CCA(0.1, approximate=True)):
        models = [A, toys.variables(1)]
        with pytest.raises(ValueError, match=f"by permutations, but {type(start).__name__} maps 'first'"):
            SoftPermutation(start=start).init(graph, models, stats=stats)
    with pytest.raises(ValueError, match=r"call update\(updates, state, params\)"):
        annealed(optax.constant_schedule(1.0)).update(theta, annealed(optax.constant_schedule(1.0)).init(theta))
