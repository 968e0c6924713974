"""REPAIR: statistics of pre-activations against float64 numpy."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import (
    NodeMap,
    OptimalTransport,
    PartialMatching,
    WeightMatching,
    ZipIt,
    identity,
    orthogonal,
    rectangular,
    resize,
    trace,
    transport,
)
from alignment.biases import biases
from npmerge import collect, repair
from tests.alignment import networks
from tests.npmerge.toys import normal

X = normal(3, 64, 5).astype(np.float32)
BATCHES = [(X[:40], None), (X[40:], None)]  # of unequal sizes


def layer64(layer: Any, x: np.ndarray) -> np.ndarray:
    return x @ np.float64(layer["kernel"]) + np.float64(layer.get("bias", 0))


def preactivations(variables: Any) -> dict[str, np.ndarray]:
    first = layer64(variables["first"], np.float64(X))
    second = layer64(variables["second"], np.maximum(first, 0))
    return {"first": first, "second": second, "out": layer64(variables["out"], np.maximum(second, 0))}


def average(models: list, weights: Any = (0.5, 0.5)) -> Any:
    return jax.tree.map(lambda *x: sum(w * a for w, a in zip(weights, x, strict=True)), *models)


NET = networks.mlp()
MODELS = [NET.another(1), NET.another(2)]


def test_equal_parents_need_no_repair():
    found = repair(NET.apply, NET.graph, MODELS[0], [MODELS[0]] * 2, BATCHES)
    chex.assert_trees_all_close(found.variables, MODELS[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [None, (0.2, 0.8)], ids=str)
def test_every_channel_gets_the_means_and_deviations_of_its_parents(weights):
    shares = weights or (0.5, 0.5)
    merged = average(MODELS, shares)
    found = repair(NET.apply, NET.graph, merged, MODELS, iter(BATCHES), weights=weights)
    assert found.corrected == ("first/kernel", "second/kernel")
    assert not found.scaled
    assert list(found.left) == ["out/kernel"]
    before, now, *parents = map(preactivations, (merged, found.variables, *MODELS))
    for name in ("first", "second"):
        for statistic in (np.mean, np.std):
            wanted = sum(w * statistic(p[name], axis=0) for w, p in zip(shares, parents, strict=True))
            np.testing.assert_allclose(statistic(now[name], axis=0), wanted, rtol=1e-4, atol=1e-4)
            if (name, statistic) != ("first", np.mean):  # linear in the weights: nothing is lost there
                assert np.abs(statistic(before[name], axis=0) - wanted).max() > 0.05
    chex.assert_trees_all_equal(found.variables["out"], merged["out"])


def test_the_collapse_of_the_variance_is_undone():
    """The deviation of the outputs, which the repair does not touch themselves."""
    many = [NET.another(k) for k in range(6)]
    merged = average(many, [1 / 6] * 6)
    found = repair(NET.apply, NET.graph, merged, many, BATCHES).variables
    collapsed, repaired, *theirs = (preactivations(v)["second"].std(0).mean() for v in (merged, found, *many))
    assert collapsed < 0.5 * np.mean(theirs)
    assert repaired == pytest.approx(np.mean(theirs), rel=1e-4)


def compared(maps, statistic, parents, name):
    """What the units of the merged network should have, unit by unit: the mean over the parents' units behind each of them."""
    behind = [np.asarray(m[name].push, np.float64) for m in maps]
    return sum(push @ statistic(p[name], axis=0) for push, p in zip(behind, parents, strict=True)) / len(maps)


@pytest.mark.parametrize(
    "method", [PartialMatching(WeightMatching(), 0.5), ZipIt(0.75), ZipIt(0.25, beta=1.0), OptimalTransport("weights", width=9)]
)
def test_a_merged_network_of_other_widths_gets_those_of_the_units_behind_each_of_its_own(method):
    stats = collect(NET.apply, NET.graph, MODELS, BATCHES, method.needs) if method.needs else None
    maps = method.maps(method.init(NET.graph, MODELS, stats=stats), NET.graph)
    merged = average([transport(NET.graph, m, v) for m, v in zip(maps, MODELS, strict=True)])
    found = repair(NET.apply, NET.graph, merged, MODELS, BATCHES, maps=maps)
    assert found.corrected == ("first/kernel", "second/kernel")
    now, *parents = map(preactivations, (found.variables, *MODELS))
    for name in ("first", "second"):
        assert now[name].shape[1] == maps[0][name].push.shape[0]
        for statistic in (np.mean, np.std):
            wanted = compared(maps, statistic, parents, name)
            np.testing.assert_allclose(statistic(now[name], axis=0), wanted, rtol=1e-3, atol=1e-4)
    assert np.abs(preactivations(merged)["second"].std(0) - compared(maps, np.std, parents, "second")).max() > 0.05
    chex.assert_trees_all_equal(found.variables["out"], merged["out"])


def test_what_was_kept_separate_has_nothing_to_correct():
    """The ensemble as one network, and a network widened by copies of its units."""
    for models, ratio in ((MODELS, 1.0), ([MODELS[0]] * 2, 0.5)):
        method = PartialMatching(WeightMatching(), ratio)
        maps = method.maps(method.init(NET.graph, models), NET.graph)
        merged = average([transport(NET.graph, m, v) for m, v in zip(maps, models, strict=True)])
        found = repair(NET.apply, NET.graph, merged, models, BATCHES, maps=maps)
        chex.assert_trees_all_close(found.variables, merged, rtol=1e-4, atol=1e-5)


def test_parents_of_different_widths():
    """Copies of a network with other numbers of units, which merge to its function: nothing is left to correct."""
    net = networks.network("vgg")
    wide = {
        n.name: NodeMap(push := np.tile(np.eye(n.size, dtype=np.float32), (2, 1)), push.T / 2) for n in net.graph.nodes.values()
    }
    models = [net.variables, transport(net.graph, wide, net.variables)]
    apply = resize(net.apply, net.graph, models[1])
    graphs = [net.graph, trace(apply, models[1], net.inputs)]
    method = OptimalTransport("weights")
    maps = method.maps(method.init(graphs, models), graphs[0])
    merged = average([transport(g, m, v) for g, m, v in zip(graphs, maps, models, strict=True)])
    damaged = jax.tree.map(lambda x: x * 0.9, merged)
    found = repair([net.apply, apply], graphs, damaged, models, [(net.inputs, None)], maps=maps)
    for name in ("conv1", "conv2", "hidden"):
        chex.assert_trees_all_close(found.variables["params"][name], merged["params"][name], rtol=1e-3, atol=1e-4)


def test_maps_that_repair_cannot_use():
    identities = {n.name: identity(n.size) for n in NET.graph.nodes.values()}
    wider = rectangular(np.eye(9, 8, dtype=np.float32), np.eye(8, 9, dtype=np.float32))
    turned = identities | {"first": orthogonal(-np.eye(8, dtype=np.float32))}
    for maps, options, told in (
        ([identities], {}, "expected maps for each of 2 models, got 1"),
        ([identities, turned], {}, "the map of 'first' in model 1 has negative entries"),
        ([identities] * 2, {"weights": (0.5, 0.5)}, "repair takes weights or maps, not both"),
        ([identities, {"frist": identities["first"]}], {}, "unknown node 'frist'"),
        ([1, 2], {}, "the maps of model 0 must be node -> NodeMap"),
        ([identities, jax.tree.map(lambda x: x * np.nan, identities)], {}, "the maps of model 1"),
        ([identities | {"first": wider}] * 2, {}, "no widths of the nodes give"),
    ):
        with pytest.raises(ValueError, match=told):
            repair(NET.apply, NET.graph, MODELS[0], MODELS, BATCHES, maps=maps, **options)
    with pytest.raises(ValueError, match="expected a function, or one for each of 2 models: got 1"):
        repair([NET.apply], NET.graph, MODELS[0], MODELS, BATCHES)


def test_what_does_not_vary_is_left():
    """Though its values are off by rounding from example to example."""
    found = repair(NET.apply, NET.graph, average(MODELS), MODELS, [(np.ones_like(X), None)])
    assert not found.corrected
    chex.assert_trees_all_equal(found.variables, average(MODELS))


def without_bias(variables: Any, x: jax.Array) -> jax.Array:
    h = jax.nn.relu(x @ variables["first"]["kernel"])
    h = jax.nn.relu(networks.dense(variables["second"], h))
    return networks.dense(variables["out"], h)


def test_without_a_bias_only_the_deviation_is_corrected_and_that_is_said():
    models = [m | {"first": {"kernel": m["first"]["kernel"]}} for m in MODELS]
    graph = trace(without_bias, models[0], X)
    found = repair(without_bias, graph, average(models), models, BATCHES)
    assert (found.corrected, found.scaled) == (("second/kernel",), ("first/kernel",))
    now, *parents = map(preactivations, (found.variables, *models))
    for name in ("first", "second"):
        np.testing.assert_allclose(now[name].std(0), np.mean([p[name].std(0) for p in parents], 0), rtol=1e-4)
    np.testing.assert_allclose(now["second"].mean(0), np.mean([p["second"].mean(0) for p in parents], 0), atol=1e-4)
    assert np.abs(now["first"].mean(0) - np.mean([p["first"].mean(0) for p in parents], 0)).max() > 1e-3


@pytest.mark.parametrize("also", [(), (0, 1, 4, 5)])  # most of them, too
def test_dead_channels_are_left_alone(also):
    merged = average(MODELS)
    merged["first"]["kernel"] = merged["first"]["kernel"].at[:, 2].multiply(1e-8).at[:, [3, *also]].set(0)
    found = repair(NET.apply, NET.graph, merged, MODELS, BATCHES).variables
    chex.assert_tree_all_finite(found)
    for k in (2, 3):
        chex.assert_trees_all_equal(*(jax.tree.map(lambda x, k=k: x[..., k], v["first"]) for v in (found, merged)))


def test_a_site_without_a_living_channel_is_left_and_named():
    merged = average(MODELS)
    merged["first"] = jax.tree.map(jnp.zeros_like, merged["first"])
    found = repair(NET.apply, NET.graph, merged, MODELS, BATCHES)
    assert found.left["first/kernel"] == found.left["second/kernel"] == "none of its channels varies"
    assert not found.corrected
    chex.assert_trees_all_equal(found.variables, merged)
    huge = average(MODELS) | {"first": jax.tree.map(lambda x: x * 1e38, MODELS[0]["first"])}
    found = repair(NET.apply, NET.graph, huge, MODELS, BATCHES)
    assert found.left["first/kernel"] == "its outputs are not finite"


def shared(variables: Any, x: jax.Array) -> jax.Array:
    h = jnp.tanh(x @ variables["w"] + jnp.broadcast_to(variables["b"], x.shape))
    h = jnp.tanh(h @ variables["w"])
    return jnp.tanh(h @ variables["v"]) @ variables["o"]


def test_shared_weights_and_loops_are_left_and_named():
    shapes = {"w": (5, 5), "b": (5,), "v": (5, 4), "o": (4, 2)}
    models = [{name: networks.data(*s, seed=10 * k + len(s)) for name, s in shapes.items()} for k in range(2)]
    graph = trace(shared, models[0], X)
    found = repair(shared, graph, average(models), models, BATCHES)
    assert found.left["w"] == found.left["w#2"] == "its weight is used at several sites"
    assert found.scaled == ("v",)
    towers = networks.network("towers")
    found = repair(towers.apply, towers.graph, towers.variables, [towers.another(1)], [(towers.inputs, None)])
    assert found.left["layers/into"] == found.left["layers/out"] == "it is inside a loop"
    assert found.scaled == ("embed",)


def test_convolutions():
    """Deviations and means over all positions, by a second repair: it finds nothing left to do."""
    net = networks.network("vgg")
    models, batches = [net.another(1), net.another(2)], [(net.inputs, None)]
    merged = average(models)
    once = repair(net.apply, net.graph, merged, models, batches)
    assert once.corrected == ("params/conv1/kernel", "params/conv2/kernel", "params/hidden/kernel")
    chex.assert_trees_all_equal_shapes_and_dtypes(once.variables, merged)
    assert np.abs(once.variables["params"]["conv2"]["kernel"] / merged["params"]["conv2"]["kernel"] - 1).max() > 0.1
    twice = repair(net.apply, net.graph, once.variables, models, batches)
    chex.assert_trees_all_close(twice.variables, once.variables, rtol=1e-4, atol=1e-5)


def test_a_bias_is_found_whatever_its_name():
    for name, expected in {
        "mlp": {"first/kernel": "first/bias", "second/kernel": "second/bias", "out/kernel": "out/bias"},
        "attention": {},
        "nnx_state": {"hidden/kernel/value": "hidden/bias/value", "out/kernel/value": "out/bias/value"},
    }.items():
        net = networks.network(name)
        assert biases(net.apply, net.graph, net.variables, net.inputs) == expected

    def apply(v, x):
        h = x @ v["a"]
        y = jnp.broadcast_to(v["b"], h.shape) + h  # read twice, and with another leaf the second time
        return jnp.tanh(y) @ v["c"] + jnp.tanh(h + jnp.broadcast_to(v["d"], h.shape)) @ v["e"]

    start = {"a": networks.data(5, 4), "b": networks.data(4), "c": networks.data(4, 2), "d": networks.data(4)}
    start["e"] = networks.data(4, 2)
    assert biases(apply, trace(apply, start, X), start, X) == {}


def test_a_table_of_positions_is_no_bias():
    def positioned(v, x):
        h = x @ v["a"]
        return jnp.tanh(h + jnp.broadcast_to(v["table"], h.shape)) @ v["b"]

    start = {"a": networks.data(5, 4), "table": networks.data(8, 4), "b": networks.data(4, 2)}
    x = X.reshape(8, 8, 5)
    graph = trace(positioned, start, x)
    assert biases(positioned, graph, start, x) == {"a": "table"}
    found = repair(positioned, graph, jax.tree.map(lambda w: w / 2, start), [start], [(x, None)])
    assert found.scaled == ("a",)
    np.testing.assert_allclose(found.variables["a"], start["a"], rtol=1e-5)


def test_errors():
    merged = average(MODELS)
    broken = merged | {"out": merged["out"] | {"bias": merged["out"]["bias"].at[0].set(jnp.nan)}}
    with pytest.raises(ValueError, match="the merged network has 1 non-finite values of 3 in 'out/bias'"):
        repair(NET.apply, NET.graph, broken, MODELS, BATCHES)
    with pytest.raises(ValueError, match="model 1 has 1 non-finite values of 3 in 'out/bias'"):
        repair(NET.apply, NET.graph, merged, [MODELS[0], broken], BATCHES)
    with pytest.raises(ValueError, match="the inputs of a batch have 5 non-finite values of 320"):
        repair(NET.apply, NET.graph, merged, MODELS, [(np.where(np.arange(64)[:, None] == 3, np.inf, X), None)])
    with pytest.raises(ValueError, match="expected a list of models, got generator"):
        repair(NET.apply, NET.graph, merged, (m for m in MODELS), BATCHES)
    with pytest.raises(ValueError, match="repair needs data: got no batches"):
        repair(NET.apply, NET.graph, merged, MODELS, [])
    with pytest.raises(ValueError, match="repair needs the models that were merged, got none"):
        repair(NET.apply, NET.graph, merged, [], BATCHES)
    with pytest.raises(ValueError, match=r"expected 2 finite weights, one for each model, got \(1.0,\)"):
        repair(NET.apply, NET.graph, merged, MODELS, BATCHES, weights=(1.0,))
    with pytest.raises(ValueError, match="variables do not fit the graph at 'out/bias'"):
        repair(NET.apply, NET.graph, merged, [MODELS[0], {**MODELS[1], "out": {"kernel": merged["out"]["kernel"]}}], BATCHES)
