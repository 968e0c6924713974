"""RegMean: the Gram matrices that it reads, and its closed form against float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import trace
from npmerge import DiagonalFisher, InputGram, NodeMoments, RegMean, collect, collect_each, stack_models
from npmerge.quadratics.gram_shares import gram_shares
from npmerge.statistics.collect import SiteGram
from tests.npmerge.toys import SIZES, apply, array, batch, dense, float64, normal, variables

MODELS = [variables(k) for k in range(3)]
STACK = stack_models(MODELS)
TASKS = [[batch(k, 9)] for k in range(3)]
SITES = ("first/kernel", "out/kernel")


@pytest.fixture(scope="module")
def graph():
    return trace(apply, MODELS[0], jnp.zeros((2, SIZES[0])))


def inputs64(model, x) -> dict:
    """What both layers read."""
    m, x = float64(model), np.asarray(x, np.float64)
    return {SITES[0]: x, SITES[1]: np.maximum(x @ m["first"]["kernel"] + m["first"]["bias"], 0)}


def grams_at(graph, **kernels) -> dict:
    """Statistics with these Gram matrices, (models, rows, rows), of the layers named."""
    by_name = {site.name: site for site in graph.sites}
    return {
        InputGram: {
            f"{layer}/kernel": SiteGram(jnp.ones(len(g)), jnp.asarray(g, jnp.float32), by_name[f"{layer}/kernel"])
            for layer, g in kernels.items()
        }
    }


def merged(merge, stats):
    theta = merge.init(STACK, stats=stats)
    return float64(jax.jit(merge.apply)(theta, STACK))


def kernels(layer) -> np.ndarray:
    return np.stack([float64(m)[layer]["kernel"] for m in MODELS])


def spread(seed, rows, samples=40) -> np.ndarray:
    x = normal(seed, 3, samples, rows)
    return x.swapaxes(1, 2) @ x / samples


def test_grams_of_own_data_and_of_shared_data(graph):
    own = collect_each(apply, graph, MODELS, TASKS, [RegMean(), DiagonalFisher])
    assert set(own) == {InputGram, DiagonalFisher}
    chex.assert_trees_all_equal_shapes(own[DiagonalFisher], STACK.params)
    shared = collect(apply, graph, MODELS, TASKS[0], [InputGram(4)])[InputGram]
    for k, model in enumerate(MODELS):
        for name in SITES:
            for found, task in ((own[InputGram], k), (shared, 0)):
                x = inputs64(model, TASKS[task][0][0])[name]
                np.testing.assert_allclose(found[name].gram[k], x.T @ x / 9, rtol=1e-5, atol=1e-6)
                assert found[name].samples[k] == 9


def test_the_closed_form_against_least_squares_on_stacked_data(graph):
    """argmin_W sum_m |X_m (W - W_m)|^2, with all off-diagonal elements and no ridge."""
    stats = collect_each(apply, graph, MODELS, TASKS, [InputGram])
    found = merged(RegMean(1.0, 0.0), stats)
    for layer in ("first", "out"):
        each = [inputs64(m, t[0][0])[f"{layer}/kernel"] for m, t in zip(MODELS, TASKS, strict=True)]
        targets = [x @ w for x, w in zip(each, kernels(layer), strict=True)]
        expected = np.linalg.lstsq(np.concatenate(each), np.concatenate(targets), rcond=None)[0]
        np.testing.assert_allclose(found[layer]["kernel"], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[layer]["bias"], np.mean([float64(m)[layer]["bias"] for m in MODELS], 0), rtol=1e-6)


def test_the_formula_with_scaled_off_diagonals_and_ridge(graph):
    g, w = spread(1, 6), kernels("out")
    scaled = 0.7 * g + 0.3 * np.stack([np.diag(np.diag(x)) for x in g])
    held = scaled + 0.01 * np.trace(scaled.sum(0)) / 18 * np.eye(6)
    expected = np.linalg.solve(held.sum(0), (held @ w).sum(0))
    found = merged(RegMean(0.7, 0.01), grams_at(graph, out=g))["out"]["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("g", [np.stack([spread(1, 6)[0]] * 3), np.stack([np.eye(6)] * 3)], ids=["equal", "identity"])
def test_equal_grams_give_the_mean(graph, g):
    np.testing.assert_allclose(merged(RegMean(), grams_at(graph, out=g))["out"]["kernel"], kernels("out").mean(0), atol=1e-6)


def test_without_off_diagonals_rows_are_weighted_by_their_mean_squares(graph):
    g, w = spread(2, 6), kernels("out")
    weights = np.stack([np.diag(x) for x in g])[:, :, None]
    expected = (weights * w).sum(0) / weights.sum(0)
    np.testing.assert_allclose(merged(RegMean(0.0, 0.0), grams_at(graph, out=g))["out"]["kernel"], expected, rtol=1e-5)


def test_tasks_in_orthogonal_subspaces_keep_their_own_functions(graph):
    """Three planes of six dimensions: each model is reproduced on its own."""
    basis = np.linalg.qr(normal(3, 6, 6))[0]
    x = [normal(4 + k, 30, 2) @ basis[2 * k : 2 * k + 2] for k in range(3)]
    found = merged(RegMean(1.0, 0.0), grams_at(graph, out=np.stack([a.T @ a / 30 for a in x])))["out"]["kernel"]
    for inputs, w in zip(x, kernels("out"), strict=True):
        np.testing.assert_allclose(inputs @ found, inputs @ w, atol=2e-5)


@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_directions_that_no_data_showed_are_averaged_and_said(graph, ridge):
    """Inputs along a line that is no axis, one input that is never used, and rounding all around."""
    line = np.array([1.0, 2.0, -1.0, 0.0])
    g = np.stack([np.outer(line, line)] * 3) * np.array([1.0, 2.0, 3.0])[:, None, None]
    with pytest.warns(UserWarning, match=r"RegMean: the data leave directions open at 1 of 1 sites \('first/kernel'\)") as told:
        found = merged(RegMean(1.0, ridge), grams_at(graph, first=g))["first"]["kernel"]
    assert told[0].filename == __file__
    w = kernels("first")
    np.testing.assert_allclose(line @ found, line @ np.tensordot([1 / 6, 2 / 6, 3 / 6], w, 1), atol=1e-5)
    across = np.linalg.svd(line[None])[2][1:]
    np.testing.assert_allclose(across @ found, across @ w.mean(0), atol=1e-5)


def test_every_copy_of_a_site_is_solved(graph):
    g = normal(7, 3, 2, 5, 4)
    g = g.swapaxes(-1, -2) @ g
    (((found,), singular),) = gram_shares([(g,)], 1e-6)
    assert not singular
    for copy in range(2):
        np.testing.assert_allclose(found[:, copy], np.linalg.solve(g[:, copy].sum(0)[None], g[:, copy]), rtol=1e-3, atol=1e-5)


def test_a_weight_used_twice_is_solved_for_both_uses_and_a_tied_one_is_left():
    def twice(v, x):
        h = jax.nn.relu(dense(v["both"], jax.nn.relu(dense(v["both"], v["table"][x]))))
        return h @ v["table"].T

    models = [
        {"both": {"kernel": array(k, 4, 4), "bias": jnp.abs(array(9 + k, 4))}, "table": array(20 + k, 5, 4)} for k in range(2)
    ]
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 5, 40), jnp.int32)
    stats = collect(twice, trace(twice, models[0], tokens), models, [(tokens, None)], [InputGram])
    assert set(stats[InputGram]) == {"both/kernel", "both/kernel#2"}  # the table is looked up, too
    g = np.stack([sum(np.asarray(s.gram[k], np.float64) for s in stats[InputGram].values()) for k in range(2)])
    found = jax.jit(RegMean().apply)(RegMean(1.0, 0.0).init(stack_models(models), stats=stats), stack_models(models))
    expected = np.linalg.solve(g.sum(0), sum(g[k] @ float64(models[k])["both"]["kernel"] for k in range(2)))
    np.testing.assert_allclose(found["both"]["kernel"], expected, rtol=1e-3, atol=1e-4)


def test_errors(graph):
    good = grams_at(graph, first=spread(1, 4), out=spread(1, 6))[InputGram]
    first, out = good["first/kernel"], good["out/kernel"]
    other = SiteGram(out.samples, out.gram, first.site)
    for wrong, match in (
        ({"first/kernel": other}, r"Gram matrix of 'first/kernel' is of.*another layer: got \(3, 6, 6\), expected \(3, 4, 4\)"),
        ({"first/kernel": SiteGram(first.samples, first.gram[:2], first.site)}, r"got \(2, 4, 4\), expected \(3, 4, 4\)"),
        ({"first/kernel": SiteGram(first.samples, first.gram * jnp.nan, first.site)}, "'first/kernel' is not finite"),
    ):
        with pytest.raises(ValueError, match=match):
            RegMean()(STACK, stats={InputGram: wrong})
    with pytest.raises(ValueError, match=r"'first/kernel' is of.*expected no such weight"):
        RegMean()(stack_models([{"w": jnp.ones(3)}]), stats={InputGram: good})
    for bad in ({"scale": 1.2}, {"ridge": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            RegMean(**bad)
    with pytest.raises(ValueError, match="got 2 for 3 models"):
        collect_each(apply, graph, MODELS, TASKS[:2], [InputGram])
    with pytest.raises(ValueError, match="NodeMoments relates the models to each other"):
        collect_each(apply, graph, MODELS, TASKS, [NodeMoments()])
    with pytest.raises(ValueError, match="collect_each needs at least one model, got an empty list"):
        collect_each(apply, graph, [], [], [InputGram])
    assert set(collect_each(apply, graph, MODELS, TASKS, iter([RegMean(), DiagonalFisher]))) == {InputGram, DiagonalFisher}
