"""PLeaS in one call: the two ends of the budget are the permuted average and the mean of the outputs."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import npmerge as nm
from alignment import PartialMatching, WeightMatching, ZipIt, trace
from alignment.graph import flatten
from npmerge import Average, LeastSquares, LogitEnsemble, Pleas, align, resize, stack_models
from npmerge.models import Vgg, build
from tests.alignment import networks

NET = networks.network("mlp")
MODELS, GRAPH = [NET.another(seed) for seed in range(3)], NET.graph
X = networks.data(40, NET.inputs.shape[1])


def merged(budget, models, pleas=None, **rest):
    made = (pleas or Pleas())(NET.apply, GRAPH, models, budget, inputs=X[:1], **rest)
    return made, resize(NET.apply, GRAPH, made.variables, made.widths)


@pytest.mark.parametrize("count", [2, 3])
def test_the_ends_of_the_budget(count):
    models = MODELS[:count]
    small, _ = merged(1, models)
    chex.assert_trees_all_close(small.variables, Average()(stack_models(align(WeightMatching(), GRAPH, models))), rtol=1e-5)
    large, apply = merged(count, models)
    np.testing.assert_allclose(apply(large.variables, X), LogitEnsemble(NET.apply)(models, X), rtol=1e-4, atol=1e-5)
    assert [small.allocation.cost, small.dense, large.allocation.cost] == pytest.approx([1, 1, count])
    assert large.widths == {name: count * node.size for name, node in GRAPH.nodes.items()}


def test_least_squares_come_closer_to_the_mean_of_the_outputs():
    models, batches = MODELS[:2], [(X, np.zeros(len(X), int))]
    target = LogitEnsemble(NET.apply)(models, X)
    errors = []
    for fit in (None, LeastSquares(), LeastSquares(sequential=True)):
        made, apply = merged(1.5, models, Pleas(least_squares=fit), batches=batches)
        assert 1 < made.allocation.cost <= 1.5
        assert (made.solved is None) == (fit is None)
        errors.append(float(jnp.square(apply(made.variables, X) - target).mean()))
    assert errors[2] < errors[0]


def test_statistics_are_estimated_anew():
    config = Vgg(stages=((3,),), dense=(4,), classes=2, side=2, channels=1, norm="batch")
    network, x = build(config), networks.data(32, 2, 2, 1)
    models, batches = [build(config, seed=k).variables for k in range(2)], [(x, None)]
    graph = nm.trace(network.apply, models[0], x)
    made = Pleas()(network.apply, graph, models, 1.5, inputs=x[:1], batches=batches, train_apply=network.train_apply)
    train_apply = resize(network.train_apply, graph, made.variables, made.widths)
    assert train_apply.widths
    chex.assert_trees_all_close(made.variables, nm.reset_statistics(train_apply, made.variables, batches), rtol=1e-5)
    assert np.all(flatten(made.variables)["batch_stats/stages/0/0/norm/mean"] != 0)


def test_any_number_of_budgets_are_matched_once(monkeypatch):
    calls, models = [], MODELS[:2]
    init = WeightMatching.init
    monkeypatch.setattr(WeightMatching, "init", lambda *args, **rest: calls.append(1) or init(*args, **rest))
    ready = Pleas().prepare(NET.apply, GRAPH, models, inputs=X[:1])
    made = [ready.at(budget) for budget in (1.3, 1.7, 1.3)]
    assert len(calls) == 1
    chex.assert_trees_all_equal(made[0].variables, made[2].variables)
    for budget, found in zip((1.3, 1.7), made, strict=False):
        alone, _ = merged(budget, models)
        assert (alone.allocation, alone.widths, alone.dense) == (found.allocation, found.widths, found.dense)
        partial = PartialMatching(ratio=found.allocation.ratios)  # the alignment by itself leads to the same network
        chex.assert_trees_all_equal(found.variables, Average()(stack_models(align(partial, GRAPH, models))))
    assert len(calls) == 1 + 2 * 2


def test_integers_are_those_of_the_first_model():
    def apply(variables, x):
        return NET.apply(variables["params"], x) + 0.0 * variables["step"].astype(jnp.float32)

    models = [{"params": model, "step": jnp.int32(10 + k)} for k, model in enumerate(MODELS[:2])]
    graph = trace(apply, models[0], X[:2])
    for fit, rest in ((None, {}), (LeastSquares(), {"batches": [(X, np.zeros(len(X), int))]})):
        found = Pleas(least_squares=fit)(apply, graph, models, 1.5, inputs=X[:1], **rest)
        assert found.variables["step"] == 10 and found.variables["step"].dtype == jnp.int32
        alone, _ = merged(1.5, MODELS[:2], Pleas(least_squares=fit), **rest)
        chex.assert_trees_all_close(found.variables["params"], alone.variables, rtol=1e-5, atol=1e-6)


def test_parameters_for_a_budget_and_weights_of_ones_own():
    first, second = GRAPH.nodes
    made, _ = merged(1.3, MODELS[:2], Pleas(by="parameters"), weights={first: 1.0})
    assert dict(made.allocation.ratios).get(first, 0) > 0 == dict(made.allocation.ratios).get(second, 0)
    small, large = nm.parameters(MODELS[0]), nm.parameters(made.variables)
    assert small < large
    assert made.allocation.cost <= 1.3
    broken = {**MODELS[1], "first": {**MODELS[1]["first"], "bias": MODELS[1]["first"]["bias"].at[0].set(jnp.nan)}}
    with pytest.raises(ValueError, match="model 1 has 1 non-finite values of 8 in 'first/bias'"):
        merged(1.5, [MODELS[0], broken])
    for wrong, message in (
        ({"matching": ZipIt()}, "takes an alignment by permutations, got ZipIt"),
        ({"least_squares": True}, r"must be LeastSquares\(\.\.\.\) or None, got bool"),
        ({"by": "time"}, "by 'flops' or 'parameters', got 'time'"),
    ):
        with pytest.raises(ValueError, match=message):
            Pleas(**wrong)
    for budget in (3, 0.5, "2", None, True, float("nan")):
        with pytest.raises(ValueError, match=rf"between 1 and the number of models, 2.*got {budget!r}"):
            merged(budget, MODELS[:2])
    for weights in ({first: "1"}, {first: None}, {"layer": 1.0}, 1.0):
        with pytest.raises(ValueError, match=r"finite and not negative|unknown node 'layer': expected one of first"):
            merged(1.5, MODELS[:2], weights=weights)
    with pytest.raises(ValueError, match=r"expected a list of models, got Stack"):
        merged(1.5, stack_models(MODELS[:2]))
    with pytest.raises(ValueError, match=r"expected a list of models, got list_iterator"):
        merged(1.5, iter(MODELS[:2]))
    with pytest.raises(ValueError, match="models must be an integer of 2 or more, got 1"):
        Pleas().prepare(NET.apply, GRAPH, MODELS[:1], inputs=X[:1])
