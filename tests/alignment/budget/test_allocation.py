"""Ratios for a budget: kept exactly, used up, against brute force, and what nodes are worth."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import ActivationMatching, NodeMoments, PartialMatching, WeightMatching, align, matched_correlation, trace
from alignment.budget.allocation import Allocation, allocate
from alignment.budget.costs import Costs, costs
from alignment.budget.gains import disagreement, measured_gains
from alignment.budget.polynomial import Polynomial
from alignment.graph import Graph
from npmerge import collect
from npmerge.models.build import abstract, build, example
from npmerge.models.mlp import Mlp
from npmerge.models.resnet_cifar import ResNetCifar
from tests.alignment.test_zoo import network

PERCEPTRON = Mlp(inputs=10, hidden=(6, 8, 5), classes=4)


def measured(config) -> tuple[Graph, Costs]:
    net = abstract(config)
    graph = trace(net.apply, net.variables, example(config))
    return graph, costs(net.apply, graph, net.variables, example(config))


@pytest.fixture(scope="module")
def perceptron() -> tuple[Graph, Costs]:
    return measured(PERCEPTRON)


@pytest.fixture(scope="module")
def resnet() -> tuple[Graph, Costs]:
    return measured(ResNetCifar(blocks=1, width=8, side=8))


def separate_units(allocation: Allocation, graph: Graph) -> dict[str, int]:
    return {name: graph.nodes[name].size - k for name, k in PartialMatching(ratio=allocation.ratios).merged(graph).items()}


def optimum(found: Costs, weights: dict[str, float], budget: float, **options) -> float:
    """The best sum of weights times ratios, over every number of separate units of every node."""
    gains = []
    for units in itertools.product(*(range(size + 1) for _, size in found.sizes)):
        ratios = {name: k / size for (name, size), k in zip(found.sizes, units, strict=True)}
        if found.multiple(ratios, **options) <= budget + 1e-12:
            gains.append(sum(weights[name] * r for name, r in ratios.items()))
    return max(gains)


def test_the_solver_is_as_good_as_brute_force(perceptron):
    graph, found = perceptron
    rng, shortfalls = np.random.default_rng(0), []
    for models, by in itertools.product((2, 3), ("flops", "parameters")):
        for _ in range(6):
            weights = dict(zip(graph.nodes, (rng.uniform(0, 1, 3) ** 2).tolist(), strict=True))
            budget = float(rng.uniform(1, models))
            got = allocate(found, graph, weights, budget, models=models, by=by)
            best = optimum(found, weights, budget, models=models, by=by)
            assert got.gain <= best + 1e-9
            shortfalls.append(1 - got.gain / max(best, 1e-12) if best else 0.0)
    assert max(shortfalls) < 0.01
    assert sum(s < 1e-9 for s in shortfalls) > len(shortfalls) * 0.9


def test_no_choice_of_whole_nodes_is_worth_more(resnet):
    graph, found = resnet
    rng = np.random.default_rng(3)
    for _ in range(4):
        weights, budget = {name: float(rng.uniform(0, 1) ** 2) for name in graph.nodes}, float(rng.uniform(1.1, 1.9))
        got = allocate(found, graph, weights, budget)
        choices = [dict(zip(graph.nodes, chosen, strict=True)) for chosen in itertools.product((0, 1), repeat=len(graph.nodes))]
        fitting = [ratios for ratios in choices if found.multiple(ratios) <= budget]
        assert got.gain >= max(sum(weights[name] * r for name, r in ratios.items()) for ratios in fitting)


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("by", ["flops", "parameters"])
def test_the_budget_is_kept_exactly_and_used_up(resnet, models, by):
    graph, found = resnet
    rng = np.random.default_rng(1)
    weights = {name: float(rng.uniform(0.1, 1)) for name in graph.nodes}
    for budget in (1.1, 1.5, models - 0.2):
        got = allocate(found, graph, weights, budget, models=models, by=by)
        ratios = dict(got.ratios)
        assert got.cost == found.multiple(ratios, models=models, by=by) <= budget + 1e-12
        assert got.gain == pytest.approx(sum(weights[n] * r for n, r in ratios.items()))
        units = separate_units(got, graph)
        for name, node in graph.nodes.items():
            assert units[name] == pytest.approx(ratios[name] * node.size)
            if units[name] < node.size:
                more = ratios | {name: (units[name] + 1) / node.size}
                assert found.multiple(more, models=models, by=by) > budget


def test_the_ends_of_the_budget_are_the_average_and_the_ensemble(resnet):
    graph, found = resnet
    weights = dict.fromkeys(graph.nodes, 1.0)
    assert set(dict(allocate(found, graph, weights, 1).ratios).values()) == {0.0}
    for models in (2, 4):
        everything = allocate(found, graph, weights, models, models=models)
        assert set(dict(everything.ratios).values()) == {1.0} and everything.cost == models


def test_more_budget_never_gains_less(resnet):
    graph, found = resnet
    rng = np.random.default_rng(2)
    weights = {name: float(rng.uniform(0.1, 1)) for name in graph.nodes}
    got = [allocate(found, graph, weights, budget) for budget in np.linspace(1, 2, 9).tolist()]
    gains, costs_of = [a.gain for a in got], [a.cost for a in got]
    assert all(b >= a for a, b in itertools.pairwise(gains)) and all(b > a for a, b in itertools.pairwise(costs_of))


def test_more_budget_never_separates_fewer_units_of_equal_worth(perceptron):
    graph, found = perceptron
    weights = {name: float(node.size) for name, node in graph.nodes.items()}  # so the gain is the number of units
    got = [allocate(found, graph, weights, budget) for budget in np.linspace(1, 2, 9).tolist()]
    totals = [sum(separate_units(a, graph).values()) for a in got]
    assert totals == [round(a.gain) for a in got] == sorted(totals)
    assert totals[0] == 0 and totals[-1] == sum(n.size for n in graph.nodes.values())


def test_three_models_are_two_with_the_budget_scaled(resnet):
    graph, found = resnet
    weights = {name: 1.0 + k for k, name in enumerate(graph.nodes)}
    two, three = allocate(found, graph, weights, 1.4), allocate(found, graph, weights, 1.8, models=3)
    assert two.ratios == three.ratios
    assert three.cost == pytest.approx(1 + 2 * (two.cost - 1))


def test_nodes_that_are_not_weighed_stay_merged(resnet):
    graph, found = resnet
    first, second, *rest = graph.nodes
    got = allocate(found, graph, {first: 1.0, second: 0.0}, 2)
    assert dict(got.ratios) == {first: 1.0, second: 1.0}  # nothing is worth nothing: what is left of the budget is used
    assert got.cost < 2
    assert all(PartialMatching(ratio=got.ratios).ratios(graph)[name] == 0 for name in rest)


def test_the_outcome_is_deterministic_and_runs(perceptron):
    graph, found = perceptron
    net = build(PERCEPTRON)
    models = [net.variables, build(PERCEPTRON, seed=1).variables]
    weights = disagreement(WeightMatching(), graph, models)
    first, second = (allocate(found, graph, weights, 1.5) for _ in range(2))
    assert first == second and hash(first) == hash(second)
    alignment = PartialMatching(ratio=first.ratios)
    theta = alignment.init(graph, models)
    assert {n: m.push.shape[0] for n, m in theta[0].items()} == alignment.widths(graph, 2)


def test_mistakes_are_named(perceptron):
    graph, found = perceptron
    first, *_ = graph.nodes
    for budget, models in ((0.9, 2), (2.1, 2), (3.5, 3)):
        with pytest.raises(ValueError, match=rf"between 1 and the number of models, {models}.*got {budget}"):
            allocate(found, graph, {first: 1.0}, budget, models=models)
        with pytest.raises(ValueError, match=rf"between 1 and the number of models, {models}.*got {budget}"):
            measured_gains(lambda ratios: 0.0, graph, budget, models=models)
    for budget in ("1.5", True, None, np.array([1.5]), jnp.float32(1.5)):
        for wrong in (
            lambda b: allocate(found, graph, {first: 1.0}, b),
            lambda b: measured_gains(lambda ratios: 0.0, graph, b),
        ):
            with pytest.raises(ValueError, match=rf"a budget is between 1 and .*got {re.escape(repr(budget))} \(\w+\)"):
                wrong(budget)
    with pytest.raises(ValueError, match="between 1 and the number of models, 2: got nan"):
        allocate(found, graph, {first: 1.0}, float("nan"))
    for models in (0, 1, 2.0, True):
        with pytest.raises(ValueError, match=f"models must be an integer of 2 or more, got {models}"):
            allocate(found, graph, {first: 1.0}, 1, models=models)
    for weights in ({}, {first: -1.0}, {first: float("nan")}):
        with pytest.raises(ValueError, match="weights must be finite and not negative"):
            allocate(found, graph, weights, 1.5)
    for value in ("1", True, None, float("inf"), np.ones(2)):
        with pytest.raises(ValueError, match=rf"finite and not negative.*got {re.escape(repr(value))} for '{first}'"):
            allocate(found, graph, {first: value}, 1.5)
    for weights in (None, 1.0, [(first, 1.0)]):
        with pytest.raises(ValueError, match=f"as a mapping from their names: got {type(weights).__name__}"):
            allocate(found, graph, weights, 1.5)
    with pytest.raises(ValueError, match="unknown node 'params/layer/0': the nearest is 'params/layers/0'"):
        allocate(found, graph, {"params/layer/0": 1.0}, 1.5)
    with pytest.raises(ValueError, match=r"unknown node 'layer': .*those that can change width are params/layers/0"):
        allocate(found, graph, {"layer": 1.0}, 1.5)


def test_nodes_that_cannot_change_are_listed():
    net = network("attention_by_einsum")
    found = costs(net.apply, net.graph, net.variables, net.inputs)
    inside = next(n.name for n in net.graph.nodes.values() if n.index)
    with pytest.raises(ValueError, match=f"node '{inside}' must stay merged.*it is inside.*those that can change width are"):
        allocate(found, net.graph, {inside: 1.0}, 1.5)
    heads = net.graph.nodes[inside].index[-1]
    got = allocate(found, net.graph, {heads: 1.0}, 1.5)
    assert inside in dict(got.held) and heads not in dict(got.held) and 1 <= got.cost <= 1.5


def test_disagreement_is_zero_for_copies_and_grows_with_difference(perceptron):
    graph, _ = perceptron
    net = build(PERCEPTRON)
    x = jax.random.normal(jax.random.key(0), (128, 10))
    other = build(PERCEPTRON, seed=5).variables
    near = jax.tree.map(lambda a, b: a + 0.2 * b, net.variables, other)
    for matching in (WeightMatching(), ActivationMatching()):

        def between(models, matching=matching):
            stats = collect(net.apply, graph, models, [(x, None)], [NodeMoments])
            return disagreement(matching, graph, models, stats=stats)

        same, close, far = (between([net.variables, second]) for second in (net.variables, near, other))
        assert list(same) == list(graph.nodes)
        assert max(same.values()) < 1e-5
        assert all(0 < close[n] < far[n] <= 2 for n in same)
        three = between([net.variables, net.variables, other])
        assert all(three[n] == pytest.approx(far[n] / 2, abs=0.02) for n in same if isinstance(matching, ActivationMatching))


def test_correlations_are_those_of_aligned_models(perceptron):
    """The agreement is what `matched_correlation` says of the models once they are aligned."""
    graph, _ = perceptron
    net = build(PERCEPTRON)
    x = jax.random.normal(jax.random.key(0), (128, 10))
    models = [build(PERCEPTRON, seed=k).variables for k in range(3)]
    stats = collect(net.apply, graph, models, [(x, None)], [NodeMoments])
    weights = disagreement(ActivationMatching(), graph, models, stats=stats)
    aligned = align(ActivationMatching(), graph, models, stats=stats)
    moments = collect(net.apply, graph, aligned, [(x, None)], [NodeMoments])[NodeMoments]
    for name, each in matched_correlation(moments).items():
        assert 1 - weights[name] == pytest.approx(each.mean(), abs=1e-5)


@pytest.mark.parametrize("models", [2, 3])
def test_measured_gains_are_the_published_blend(perceptron, models):
    graph, _ = perceptron
    first, second, third = graph.nodes
    calls = []

    def evaluate(ratios):
        calls.append(dict(ratios))
        return 0.4 + 0.1 * ratios[first] + 0.2 * ratios[second] - 0.3 * ratios[third] + 0.05 * ratios[first] * ratios[second]

    for budget in (1.0, 1.25, float(models)):
        got = measured_gains(evaluate, graph, budget, models=models)
        a, b = (models - budget) / (models - 1), (budget - 1) / (models - 1)
        assert got[first] == pytest.approx(0.1 * a + 0.15 * b)
        assert got[second] == pytest.approx(0.2 * a + 0.25 * b)
        assert got[third] == 1e-5
    assert calls[0] == dict.fromkeys(graph.nodes, 0.0)
    assert len(calls) == 4 + 8 + 4
    assert list(measured_gains(evaluate, graph, 1.5, models=models, nodes=[second])) == [second]


def test_polynomials_are_collected_and_derived():
    x, y = Polynomial.variable("x"), Polynomial.variable("y", 2)
    p = (x + y) * (x + Polynomial.constant(3)) + x * x
    assert dict(p.terms) == {("x",): 3.0, ("x", "x"): 2.0, ("x", "y"): 2.0, ("y",): 6.0}
    assert p({"x": 2, "y": 5}) == 6 + 8 + 20 + 30
    compiled = p.compiled(["y", "x"])
    assert compiled(np.array([5.0, 2.0])) == 64
    points = np.array([[5.0, 2.0], [0.0, 0.0]])
    np.testing.assert_allclose(compiled(points), [64, 0])
    values, gradient, squares = compiled.along(points)
    np.testing.assert_allclose(values, [[64, 64], [0, 0]])
    np.testing.assert_allclose(gradient, [[2 * 2 + 6, 3 + 4 * 2 + 2 * 5], [6, 3]])
    np.testing.assert_allclose(squares, [[0, 2], [0, 2]])
    moved = compiled(points[0] + np.diag([0.5, -3.0]))
    np.testing.assert_allclose(moved, (values + gradient * [0.5, -3.0] + squares * [0.25, 9.0])[0])
    assert dict(p.at({"y": 5}).terms) == {("x",): 13.0, ("x", "x"): 2.0, (): 30.0}


def test_an_evaluation_that_is_no_number_is_named(perceptron):
    graph, _ = perceptron
    with pytest.raises(ValueError, match="an evaluation must be a finite number, got nan for the ratios"):
        measured_gains(lambda ratios: float("nan"), graph, 1.5)
