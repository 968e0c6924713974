"""Many models into one universe of units."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import CycleConsistent, WeightMatching
from alignment.graph import path_name
from alignment.methods.cycle_consistent import Universe
from alignment.permutations import after, inverse, permuted, unmoved
from tests.alignment import networks


def moved(graph, variables, orders):
    return jax.tree_util.tree_map_with_path(lambda path, x: permuted(graph, path_name(path), np.asarray(x), orders), variables)


def agreement(graph, models, theta):
    """The sum over pairs of the inner products of weights, on the host in float64."""
    trees = [networks.flatten(moved(graph, model, orders)) for model, orders in zip(models, theta, strict=True)]
    pairs = itertools.combinations(trees, 2)
    return sum(np.vdot(np.float64(p[k]), np.float64(q[k])) for p, q in pairs for k in p if "batch_stats" not in k)


def between(graph, theta, p, q):
    """The orders that bring model p into the units of model q."""
    return after(graph, theta[p], inverse(graph, theta[q]))


@functools.cache
def strangers(name, count, seed=0):
    net = networks.network(name)
    return net.graph, [net.another(count * seed + k + 1) for k in range(count)]


@pytest.mark.parametrize("name", ["mlp", "resnet", "towers"])
def test_permuted_copies_of_one_network_come_back_exactly(name):
    """Units, heads, units inside heads, queries inside their groups, in every layer."""
    net = networks.network(name)
    models = [net.variables, *(networks.shuffle(net.graph, net.variables, seed)[0] for seed in (5, 6))]
    for back in alignment.align(CycleConsistent(), net.graph, models):
        chex.assert_trees_all_equal(back, net.variables)


@pytest.mark.parametrize("name", ["mlp", "towers"])
def test_around_a_cycle_nothing_moves(name):
    graph, models = strangers(name, 3)
    theta = CycleConsistent().init(graph, models)
    steps = [between(graph, theta, p, q) for p, q in ((0, 1), (1, 2), (2, 0))]
    assert all(any((order != unmoved(graph)[node]).any() for node, order in step.items()) for step in steps)
    chex.assert_trees_all_equal(functools.reduce(functools.partial(after, graph), steps), unmoved(graph))
    chex.assert_trees_all_equal(theta[0], unmoved(graph))


def test_two_models_agree_at_least_as_well_as_weight_matching_makes_them():
    better = 0
    for seed in range(4):
        graph, models = strangers("mlp", 2, seed)
        found, matched = (agreement(graph, models, a.init(graph, models)) for a in (CycleConsistent(), WeightMatching()))
        assert found >= matched * (1 - 1e-6)
        better += found > 1.005 * matched
    assert better


@pytest.mark.parametrize(("name", "count", "seed"), [("mlp", 2, 1), ("towers", 3, 3)])
def test_no_model_gains_from_being_matched_to_the_sum_of_the_others(name, count, seed):
    """Rounding alone does not end there: for these the ascent behind it moves something."""
    graph, models = strangers(name, count, seed)
    found = [moved(graph, v, orders) for v, orders in zip(models, CycleConsistent().init(graph, models), strict=True)]
    for k, model in enumerate(found):
        others = jax.tree.map(lambda *x: sum(x), *found[:k], *found[k + 1 :])
        chex.assert_trees_all_equal(WeightMatching().init(graph, [others, model])[1], unmoved(graph))


def test_many_models_agree_better_than_when_each_is_matched_to_the_first():
    values = []
    for seed in range(3):
        graph, models = strangers("mlp", 4, seed)
        star = [unmoved(graph), *(WeightMatching().init(graph, [models[0], model])[1] for model in models[1:])]
        values.append([agreement(graph, models, theta) for theta in (CycleConsistent().init(graph, models), star)])
    found, matched = np.array(values).T
    assert (found > matched).all()
    assert found.sum() > 1.05 * matched.sum()


def one_layer(v, x):
    return jax.nn.relu(x @ v["a"]) @ v["b"]


def test_three_models_of_one_layer_against_brute_force():
    """All 24 x 24 ways to arrange two models of four units beside the first."""
    shapes, best = {"a": (3, 4), "b": (4, 2)}, 0
    graph = alignment.trace(one_layer, {name: networks.data(*s) for name, s in shapes.items()}, networks.data(2, 3))
    (node,) = graph.nodes
    for seed in range(6):
        models = [{name: networks.data(*s, seed=10 * seed + k) for name, s in shapes.items()} for k in range(3)]
        units = [np.concatenate([np.float64(m["a"]).T, np.float64(m["b"])], 1) for m in models]
        every = [list(order) for order in itertools.permutations(range(4))]
        values = [np.square(units[0] + units[1][p] + units[2][q]).sum() for p in every for q in every]
        most = (max(values) - sum(np.square(u).sum() for u in units)) / 2
        theta = CycleConsistent().init(graph, models)
        found = [u[orders[node]] for u, orders in zip(units, theta, strict=True)]
        value = sum(np.vdot(p, q) for p, q in itertools.combinations(found, 2))
        assert 0.97 * most <= value <= most + 1e-5
        best += value >= most - 1e-5
    assert best >= 4


def test_frank_wolfe_climbs_the_objective_by_the_best_step():
    graph, models = strangers("resnet", 3)
    universe = Universe(graph, models)
    start = [unmoved(graph) for _ in models]
    soft, values = universe.frank_wolfe(universe.matrices(start), 30, 1e-6)
    assert values[0] == pytest.approx(agreement(graph, models, start), rel=1e-5)
    assert all(now >= before - 1e-5 * abs(before) for before, now in itertools.pairwise(values))
    assert values[-1] > 1.1 * values[0]
    for matrix in soft.values():
        assert matrix.min() >= -1e-6
        for axis in (-1, -2):
            np.testing.assert_allclose(matrix.sum(axis), 1, atol=1e-5)


def test_the_step_is_the_best_on_its_line():
    graph, models = strangers("mlp", 3)
    universe, inside = Universe(graph, models), 0
    for seed in range(6):
        ends = [[networks.shuffle(graph, models[0], 7 * seed + 3 * e + k)[1] for k in range(3)] for e in range(2)]
        start, end = map(universe.matrices, ends)
        step, gain = universe.best_step(start, end)

        def value(t, start=start, end=end):
            soft = {name: (1 - t) * m + t * end[name] for name, m in start.items()}
            pushed = [{name: alignment.NodeMap(m[k], m[k].mT) for name, m in soft.items()} for k in range(3)]
            trees = [alignment.transport(graph, maps, model) for maps, model in zip(pushed, models, strict=True)]
            return agreement(graph, trees, [unmoved(graph)] * 3)

        grid = [value(np.float32(t)) for t in np.linspace(0, 1, 11)]
        assert value(np.float32(step)) == pytest.approx(grid[0] + gain, rel=1e-4)
        assert grid[0] + gain >= max(grid) - 1e-4 * max(grid)
        inside += 0 < step < 1
    assert 0 < inside < 6


def test_the_order_of_the_models_does_not_matter_to_copies():
    net = networks.network("mlp")
    models = [net.variables, *(networks.shuffle(net.graph, net.variables, seed)[0] for seed in (1, 2))]
    theta = CycleConsistent().init(net.graph, models)
    turned = CycleConsistent().init(net.graph, [models[2], models[0], models[1]])
    for p, q in itertools.permutations(range(3), 2):
        there = between(net.graph, turned, (p + 1) % 3, (q + 1) % 3)
        chex.assert_trees_all_equal(between(net.graph, theta, p, q), there)


def test_a_key_adds_a_start_and_nothing_else_is_random():
    graph, models = strangers("mlp", 3, 1)
    plain, *keyed = (CycleConsistent().init(graph, models, key=key) for key in (None, *map(jax.random.key, (0, 0, 1, 2, 3))))
    chex.assert_trees_all_equal(keyed[0], keyed[1])
    values = [agreement(graph, models, theta) for theta in keyed]
    assert min(values) >= agreement(graph, models, plain) * (1 - 1e-6)
    assert len(set(np.round(values, 3))) > 1


def test_running_statistics_do_not_vote():
    graph, models = strangers("resnet", 3)
    loud = [
        m | {"batch_stats": jax.tree.map(lambda x: 1e3 * networks.data(*x.shape, seed=9), m["batch_stats"])} for m in models
    ]
    chex.assert_trees_all_equal(*(CycleConsistent().init(graph, m) for m in (models, loud)))


def test_half_precision_and_integers():
    half = {name: networks.data(*s).astype(jnp.bfloat16) for name, s in (("a", (3, 5)), ("b", (5, 2)))}
    first = half | {"steps": jnp.array(7)}
    graph = alignment.trace(one_layer, first, networks.data(2, 3).astype(jnp.bfloat16))
    models = [first, *(networks.shuffle(graph, first, seed)[0] for seed in (1, 2))]
    for back in alignment.align(CycleConsistent(), graph, models):
        chex.assert_trees_all_equal(back, first)


def test_one_model_is_a_universe_of_its_own():
    net = networks.network("mlp")
    (theta,) = CycleConsistent().init(net.graph, [net.variables])
    chex.assert_trees_all_equal(theta, unmoved(net.graph))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="max_iterations must be an integer of 1 or more, got 0"):
        CycleConsistent(max_iterations=0)
    with pytest.raises(ValueError, match="tolerance must be a finite number of 0 or more, got nan"):
        CycleConsistent(tolerance=float("nan"))
