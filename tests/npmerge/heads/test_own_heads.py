"""Networks of one body with outputs of their own, three labels and seven: the body is merged, each keeps its head."""

import chex
import jax
import numpy as np
import pytest

import npmerge as nm
from alignment import ActivationMatching, NodeMoments, PartialMatching, WeightMatching, align, permutation, trace, transport
from alignment.graph import flatten
from npmerge import LeastSquares, Pleas
from npmerge.models import Mlp, Vgg, abstract, build, example
from tests.contract.test_models import generic

CONFIGS = [Mlp(inputs=4, hidden=(6, 5), classes=c) for c in (3, 7)]
NETS = [abstract(c) for c in CONFIGS]
APPLIES, MODELS = [net.apply for net in NETS], [generic(net.variables, k) for k, net in enumerate(NETS)]
GRAPHS = [trace(net.apply, net.variables, example(c)) for net, c in zip(NETS, CONFIGS, strict=True)]
X = np.asarray(jax.random.normal(jax.random.key(0), (64, 4)))
BATCHES = [(X[:40], None), (X[40:], None)]
BODY, HEADS = 4 * 6 + 6 * 5, 5 * 3 + 5 * 7  # multiply-adds
FITS = [None, LeastSquares(sequential=True)]


def with_head(model, head):
    layers = model["params"]["layers"]
    return {**model, "params": {"layers": {**layers, 2: head}}}


def head_of(model):
    return model["params"]["layers"][2]


SAME = [with_head(model, head_of(MODELS[0])) for model in MODELS]  # the same bodies with heads of one shape


def collected(models=MODELS, applies=APPLIES, graphs=GRAPHS):
    return nm.collect(applies, graphs, models, BATCHES, [NodeMoments])


def merged(budget, pleas=None, models=MODELS, **rest):
    return (pleas or Pleas())(APPLIES, GRAPHS, models, budget, inputs=X[:1], batches=BATCHES, **rest)


def shared_leaves(headed):
    return {path: x for path, x in flatten(headed.variables["shared"]).items() if path in headed.shared}


@pytest.mark.parametrize("fit", FITS, ids=["average", "sequential"])
def test_all_apart_each_head_gives_its_own_outputs(fit):
    found = merged(2, Pleas(least_squares=fit))
    expected = [apply(model, X) for apply, model in zip(APPLIES, MODELS, strict=True)]
    chex.assert_trees_all_close(found.headed.apply(found.variables, X), expected, rtol=1e-4, atol=1e-4)
    assert list(found.widths.values()) == [12, 10]
    assert found.allocation.cost == pytest.approx((2 * BODY + HEADS) / (BODY + HEADS))  # those of the two networks
    assert found.dense == pytest.approx((4 * 12 + 12 * 10 + 10 * (3 + 7)) / (BODY + HEADS))


@pytest.mark.parametrize("fit", FITS, ids=["average", "sequential"])
def test_one_body_with_two_heads_is_found_again(fit):
    """The second network has the units of the first in another order."""
    second = with_head(MODELS[0], head_of(MODELS[1]))
    rng = np.random.default_rng(0)
    order = {n.name: permutation(rng.permutation(n.size)) for n in GRAPHS[1].nodes.values()}
    models = [MODELS[0], transport(GRAPHS[1], order, second)]
    found = merged(1, Pleas(least_squares=fit), models)
    expected = [apply(model, X) for apply, model in zip(APPLIES, models, strict=True)]
    chex.assert_trees_all_close(found.headed.apply(found.variables, X), expected, rtol=1e-4, atol=1e-4)
    for path, leaf in shared_leaves(found.headed).items():
        np.testing.assert_allclose(leaf, flatten(MODELS[0])[path], rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(head_of(found.variables["heads"][1]), head_of(second), rtol=1e-6)
    assert found.allocation.cost == found.dense == 1
    if fit is not None:
        assert found.solved.left == {"params/layers/2/kernel": "the networks have outputs of their own"}
        assert found.solved.variables is found.variables and found.solved.headed is found.headed


def test_bodies_are_solved_as_those_of_networks_with_equal_outputs():
    maps, fit = PartialMatching().init(GRAPHS[0], SAME), LeastSquares()
    found = fit(APPLIES, GRAPHS, MODELS, maps, BATCHES)
    for models, own in ((SAME, {}), (SAME, {"heads": True})):
        alike = fit(APPLIES[0], GRAPHS[0], models, maps, BATCHES, **own)
        leaves = flatten(alike.variables["shared"] if own else alike.variables)
        for path, leaf in shared_leaves(found.headed).items():
            np.testing.assert_allclose(leaf, leaves[path], rtol=1e-4, atol=1e-4)
        assert (alike.headed is None) == (not own)
    again = fit(APPLIES, GRAPHS, MODELS, maps, BATCHES, merged=found.variables)
    chex.assert_trees_all_equal(again.variables["heads"], found.variables["heads"])


@pytest.mark.parametrize("matching", [WeightMatching(), ActivationMatching()])
def test_heads_take_no_part_in_the_matching(matching):
    """Whatever they hold, also where they could be merged but are kept."""
    stats = collected()
    loud = [with_head(model, jax.tree.map(lambda x: 100 * x, head_of(model))) for model in MODELS]
    found = PartialMatching(matching).init(GRAPHS, MODELS, stats=stats)
    chex.assert_trees_all_equal(PartialMatching(matching).init(GRAPHS, loud, stats=stats), found)
    alike = Pleas(matching, heads=True).prepare(APPLIES[0], GRAPHS[0], SAME, inputs=X[:1], stats=stats)
    chex.assert_trees_all_equal(alike.matched.maps({"params/layers/0": 3, "params/layers/1": 2}), found)
    widths = [y["params"]["layers"][2]["kernel"].shape for y in align(PartialMatching(matching), GRAPHS, MODELS, stats=stats)]
    assert widths == [(8, 3), (8, 7)]


def test_moments_are_those_of_the_bodies():
    chex.assert_trees_all_close(collected(), collected(SAME, APPLIES[0], GRAPHS[0]), rtol=1e-5, atol=1e-6)


def test_a_budget_counts_the_heads_of_all():
    found = merged(1.3, Pleas(by="parameters"))
    smallest = nm.parameters(MODELS[0]) + sum(x.size for x in jax.tree.leaves(head_of(MODELS[1])))
    there = sum(np.count_nonzero(x) for x in jax.tree.leaves(found.variables))
    assert there == pytest.approx(found.allocation.cost * smallest)
    assert 1.2 * smallest < there <= 1.3 * smallest


def test_equal_outputs_are_kept_apart_where_asked():
    models, rest = [MODELS[0], with_head(MODELS[0], jax.tree.map(lambda x: -x, head_of(MODELS[0])))], {"inputs": X[:1]}
    plain = Pleas()(APPLIES[0], GRAPHS[0], models, 1, **rest)
    assert plain.headed is None
    found = Pleas(heads=True)(APPLIES[0], GRAPHS[0], models, 1, **rest)
    expected = [APPLIES[0](model, X) for model in models]
    chex.assert_trees_all_close(found.headed.apply(found.variables, X), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fit", FITS, ids=["average", "sequential"])
def test_statistics_are_estimated_anew(fit):
    configs = [Vgg(stages=((3,),), dense=(4,), classes=c, side=2, channels=1, norm="batch") for c in (2, 3)]
    nets = [abstract(c) for c in configs]
    applies, training = [net.apply for net in nets], [net.train_apply for net in nets]
    x = np.asarray(jax.random.normal(jax.random.key(1), (32, 2, 2, 1)))
    batches = [(x, None)]
    graphs = [trace(net.apply, net.variables, x) for net in nets]
    models = [nm.reset_statistics(net.train_apply, generic(net.variables, k), batches) for k, net in enumerate(nets)]
    expected = [f(v, x) for f, v in zip(applies, models, strict=True)]
    if fit is None:  # whatever they were before
        models = [generic(net.variables, k) for k, net in enumerate(nets)]
    found = Pleas(least_squares=fit)(applies, graphs, models, 2, inputs=x[:1], batches=batches, train_apply=training)
    chex.assert_trees_all_close(found.headed.apply(found.variables, x), expected, rtol=1e-3, atol=1e-3)


def test_only_heads_may_differ():
    config = Mlp(inputs=3, hidden=(6, 5), classes=3)
    other = build(config)
    applies, graphs, models = [APPLIES[0], other.apply], [GRAPHS[0], trace(other.apply, other.variables, example(config))], None
    models = [MODELS[0], other.variables]
    told = r"'params/layers/0/kernel', which makes units of 'params/layers/0', has shapes \(4, 6\), \(3, 6\): only heads may"
    for call in (
        lambda: Pleas()(applies, graphs, models, 1, inputs=X[:1]),
        lambda: LeastSquares()(applies, graphs, models, [{}, {}], BATCHES),
        lambda: PartialMatching().init(graphs, models),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    wide = build(Mlp(inputs=4, hidden=(8, 5), classes=3))
    graphs, models = [GRAPHS[0], trace(wide.apply, wide.variables, X)], [MODELS[0], wide.variables]
    with pytest.raises(ValueError, match=r"NodeMoments needs models of one width: node 'params/layers/0' has 6 .* and 8"):
        collected(models, [APPLIES[0], wide.apply], graphs)
    with pytest.raises(ValueError, match="Pleas needs models of one width"):
        Pleas()([APPLIES[0], wide.apply], graphs, models, 1, inputs=X[:1])
    with pytest.raises(ValueError, match="expected a function, or one for each of 2 models: got 1"):
        Pleas()(APPLIES[:1], GRAPHS, MODELS, 1, inputs=X[:1])
    with pytest.raises(ValueError, match="heads must be True or False, got 'yes'"):
        Pleas(heads="yes")
