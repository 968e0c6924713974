"""One network up to a node and several behind it: shared where the maps are, each model's own where they end."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npmerge as nm
from alignment import NodeMap, OptimalTransport, WeightMatching, ZipIt, align, identity, permutation, resize, trace, transport
from npmerge import multi_head, reset_statistics
from npmerge.arithmetic import mean_of
from npmerge.heads.side_by_side import side_by_side
from npmerge.models import Mlp, ResNetCifar, abstract, build, example
from tests.contract.test_models import generic, inputs

CONFIG = ResNetCifar(blocks=1, width=4, shortcut="B", classes=3, side=8, channels=2)
NET, X = abstract(CONFIG), inputs(CONFIG, n=8)
MODEL = generic(NET.variables)
GRAPH = trace(NET.apply, MODEL, example(CONFIG))
NODES = list(GRAPH.nodes)


def shuffled(seed):
    rng = np.random.default_rng(seed)
    return transport(GRAPH, {n.name: permutation(rng.permutation(n.size)) for n in GRAPH.nodes.values()}, MODEL)


def maps_of(models, nodes):
    alignment = WeightMatching()
    found = alignment.maps(alignment.init(GRAPH, models), GRAPH)
    return [{name: m[name] for name in nodes} for m in found]


@pytest.mark.parametrize("count", [2, 4, len(NODES)])  # stage by stage
def test_copies_of_a_network_keep_their_function_wherever_it_is_cut(count):
    models = [MODEL, shuffled(1), shuffled(2)]
    headed = multi_head(NET.apply, GRAPH, models, maps_of(models, NODES[:count]))
    expected = NET.apply(MODEL, X)
    for outputs in jax.jit(headed.apply)(headed.variables, X):
        chex.assert_trees_all_close(outputs, expected, rtol=1e-4, atol=1e-4)
    assert ("params/head/kernel" not in headed.shared) and "params/conv/kernel" in headed.shared
    chex.assert_trees_all_equal(headed.apply.head(1)(headed.variables, X), headed.apply(headed.variables, X)[1])


def test_what_makes_merged_units_is_averaged_and_the_rest_is_each_models_own():
    models = [MODEL, generic(NET.variables, 1)]
    headed = multi_head(NET.apply, GRAPH, models, maps_of(models, NODES[:2]))
    other = align(WeightMatching(), GRAPH, models)[1]
    shared, heads = headed.variables["shared"], headed.variables["heads"]
    mean = (MODEL["params"]["conv"]["kernel"] + other["params"]["conv"]["kernel"]) / 2
    chex.assert_trees_all_close(shared["params"]["conv"]["kernel"], mean, rtol=1e-6)
    assert heads[0]["params"]["conv"]["kernel"] is None
    assert shared["params"]["head"]["kernel"] is None
    chex.assert_trees_all_equal(heads[1]["params"]["head"], models[1]["params"]["head"])
    leaves = [len(jax.tree.leaves(tree)) for tree in (shared, heads[0], MODEL)]
    assert leaves[0] + leaves[1] == leaves[2]
    assert leaves[0] == len(headed.shared)


def apart(n, k):
    """The units of model k of two, at their own places; the average will halve them."""
    own = np.eye(2, dtype=np.float32)[:, [k]]
    push = np.kron(own, np.eye(n, dtype=np.float32))
    return NodeMap(jnp.asarray(2 * push), jnp.asarray(push.T))


def test_other_widths():
    """Both models' units kept apart: each head reads its own, and the shared part is as wide as both."""
    models = [MODEL, generic(NET.variables, 1)]
    maps = [{name: apart(GRAPH.nodes[name].size, k) for name in NODES[:2]} for k in range(2)]
    headed = multi_head(NET.apply, GRAPH, models, maps, train_apply=NET.train_apply)
    for outputs, model in zip(headed.apply(headed.variables, X), models, strict=True):
        chex.assert_trees_all_close(outputs, NET.apply(model, X), rtol=1e-4, atol=1e-4)
    batches = [(X, np.zeros(len(X), int))]
    renewed = reset_statistics(headed.train_apply, headed.variables, batches)
    chex.assert_trees_all_equal_shapes_and_dtypes(renewed, headed.variables)
    for k, model in enumerate(models):
        alone = NET.apply(reset_statistics(NET.train_apply, model, batches), X)
        chex.assert_trees_all_close(headed.apply.head(k)(renewed, X), alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("nodes", [NODES[2:], NODES[1:3], NODES[:0]], ids=["stage", "middle", "nothing"])
def test_networks_that_are_zipped_nowhere_keep_their_outputs_behind_stems(nodes):
    """Units kept apart from a node on, whatever stands in front; or no maps at all."""
    models = [MODEL, generic(NET.variables, 1)]
    maps = [{name: apart(GRAPH.nodes[name].size, k) for name in nodes} for k in range(2)]
    headed = multi_head(NET.apply, GRAPH, models, maps, train_apply=NET.train_apply, stems=True)
    expected = [NET.apply(model, X) for model in models]
    chex.assert_trees_all_close(jax.jit(headed.apply)(headed.variables, X), expected, rtol=1e-4, atol=1e-4)
    mean = nm.LogitEnsemble(NET.apply)(models, X)
    chex.assert_trees_all_close(headed.apply.mean(headed.variables, X), mean, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(headed.apply.head(1)(headed.variables, X), expected[1], rtol=1e-4, atol=1e-4)
    batches = [(X, np.zeros(len(X), int))]
    renewed = reset_statistics(headed.train_apply, headed.variables, batches)
    alone = [NET.apply(reset_statistics(NET.train_apply, model, batches), X) for model in models]
    chex.assert_trees_all_close(headed.apply(renewed, X), alone, rtol=1e-3, atol=1e-3)


def test_what_separate_stems_make_is_averaged_where_it_is_computed():
    """A perceptron by hand: two first layers, one second layer behind their mean, two classifiers of other labels."""
    configs = [Mlp(inputs=4, hidden=(6, 5, 3), classes=c) for c in (3, 7)]
    nets = [abstract(c) for c in configs]
    models = [generic(net.variables, k) for k, net in enumerate(nets)]
    graphs = [trace(net.apply, v, example(c)) for net, v, c in zip(nets, models, configs, strict=True)]
    applies, x = [net.apply for net in nets], np.asarray(jax.random.normal(jax.random.key(0), (64, 4)))
    stats = nm.collect(applies, graphs, models, [(x, None)], [nm.JointMoments()])
    method = ZipIt(0.75, start="params/layers/1")
    maps = method.maps(method.init(graphs, models, stats=stats), graphs[0])
    headed = multi_head(applies, graphs, models, maps, stems=True)

    def layer(v, k):
        return [np.asarray(v["params"]["layers"][k][name], np.float64) for name in ("kernel", "bias")]

    kernels = [transport(g, m, v) for g, m, v in zip(graphs, maps, models, strict=True)]
    made, bias = [], np.zeros(7)
    for v, moved in zip(models, kernels, strict=True):
        first, second = layer(v, 0), layer(moved, 1)
        made.append(np.maximum(x @ first[0] + first[1], 0) @ second[0])
        bias = bias + second[1] / 2
    h = np.maximum(np.mean(made, 0) + bias, 0)
    third = [np.mean(both, 0) for both in zip(*(layer(v, 2) for v in kernels), strict=True)]
    h = np.maximum(h @ third[0] + third[1], 0)
    for k, (outputs, v) in enumerate(zip(headed.apply(headed.variables, x), kernels, strict=True)):
        kernel, bias = layer(v, 3)
        np.testing.assert_allclose(outputs, h @ kernel + bias, rtol=1e-4, atol=1e-4)
        chex.assert_trees_all_equal(headed.variables["heads"][k]["params"]["layers"][0], v["params"]["layers"][0])
    assert set(headed.shared) == {f"params/layers/{k}/{n}" for k, n in ((1, "bias"), (2, "kernel"), (2, "bias"))}


PADDED = abstract(ResNetCifar(blocks=1, width=4, shortcut="A", classes=3, side=8, channels=2))


@pytest.fixture(scope="module")
def padded():
    """Zero-padded shortcuts: the stream of a stage goes on in the wider one of the next, whose other units are not merged."""
    model = generic(PADDED.variables)
    return model, trace(PADDED.apply, model, example(CONFIG))


def test_a_zero_padded_shortcut_carries_merged_units_into_every_head(padded):
    """Behind the cut a model goes on writing the units that are kept apart in front of it."""
    model, graph = padded
    models = [model, generic(PADDED.variables, 1)]
    maps = [{name: apart(graph.nodes[name].size, k) for name in list(graph.nodes)[:2]} for k in range(2)]
    headed = multi_head(PADDED.apply, graph, models, maps)
    expected = [PADDED.apply(v, X) for v in models]
    chex.assert_trees_all_close(headed.apply(headed.variables, X), expected, rtol=1e-4, atol=1e-4)
    assert not any(path.startswith("params/blocks/1") for path in headed.shared)


@pytest.mark.parametrize("count", [2, 3])
def test_slots_with_more_units_of_one_model_than_of_the_other(padded, count):
    """One function, in each model another unit doubled: N M_k is 2/3 where a slot has three units, and 1 elsewhere."""
    model, graph = padded
    own = [{n.name: np.eye(n.size, dtype=np.float32)[[*range(n.size), k]] for n in graph.nodes.values()} for k in range(2)]
    models = [transport(graph, {name: NodeMap(x, (x / x.sum(0)).T) for name, x in each.items()}, model) for each in own]
    wide = resize(PADDED.apply, graph, models[0])
    doubled, nodes = trace(wide, models[0], example(CONFIG)), list(graph.nodes)[:count]
    units = {name: own[0][name].sum(0) + own[1][name].sum(0) for name in nodes}
    maps = [{name: NodeMap(2 * each[name].T / units[name][:, None], each[name]) for name in nodes} for each in own]
    headed = multi_head(wide, doubled, models, maps)
    for outputs in headed.apply(headed.variables, X):
        chex.assert_trees_all_close(outputs, PADDED.apply(model, X), rtol=1e-4, atol=1e-4)


def split(v, x):
    h = x @ v["in"] + v["bias"]
    return jax.nn.relu(jax.nn.relu(h[:, :3]) @ v["a"]) @ v["out"] + jnp.tanh(h[:, 3:]) @ v["rest"]


def dense(v, x):
    a = jax.nn.relu(x @ v["in"])
    both = jnp.concatenate([a, jax.nn.relu(a @ v["more"])], -1)
    return jax.nn.relu(both * v["scale"]) @ v["out"]


def answering(v, x):
    h = x @ v["in"]
    return jax.nn.relu(h[:, :3]) @ v["out"] + h[:, 3:]


def drawn(shapes, seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal(shape).astype(np.float32), np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("function", "path", "shapes"),
    [
        (split, "in", {"in": (5, 7), "bias": (1, 7), "a": (3, 6), "out": (6, 2), "rest": (4, 2)}),
        (dense, "scale", {"in": (5, 3), "more": (3, 4), "scale": (1, 7), "out": (7, 2)}),
        (answering, "in", {"in": (5, 5), "out": (3, 2)}),
    ],
    ids=["split", "dense", "output"],
)
def test_of_a_weight_that_makes_other_units_too_only_the_merged_part_is_averaged(function, path, shapes):
    models, x = [drawn(shapes, k) for k in range(2)], drawn({"x": (8, 5)}, 2)["x"]
    graph = trace(function, models[0], x)
    name = next(n.name for n in graph.nodes.values() if n.size == 3)
    headed = multi_head(function, graph, models, [{name: apart(3, k)} for k in range(2)])
    expected = [function(v, x) for v in models]
    chex.assert_trees_all_close(headed.apply(headed.variables, x), expected, rtol=1e-4, atol=1e-4)
    merged = multi_head(function, graph, models, [{name: identity(3)}] * 2)
    mean = (models[0][path] + models[1][path]) / 2
    for head, model in zip(merged.variables["heads"], models, strict=True):
        chex.assert_trees_all_close(head[path], jnp.concatenate([mean[..., :3], model[path][..., 3:]], -1), rtol=1e-6)


def test_a_weight_that_can_be_neither_averaged_nor_kept_is_named():
    """What enters the merged units of a split from units in front of them."""

    def late(v, x):
        return split({**v, "in": v["late"]}, jnp.tanh(x @ v["in"]))

    models = [drawn({"in": (5, 2), "late": (2, 7), "bias": (1, 7), "a": (3, 6), "out": (6, 2), "rest": (4, 2)}, 0)] * 2
    graph = trace(late, models[0], jnp.ones((1, 5)))
    maps = [{name: identity(graph.nodes[name].size) for name in ("late#1", "a")}] * 2
    told = "'late' makes units of 'late#1', which is merged, from 'in', which is not: cut elsewhere .*'late#2', which is not"
    for stems in (False, True):
        with pytest.raises(ValueError, match=told):
            multi_head(late, graph, models, maps, stems=stems)


def test_stems_cost_what_is_in_them():
    """Two of everything but the middle layers, in parameters and in operations."""
    config = Mlp(inputs=4, hidden=(6, 40, 40), classes=3)
    net = build(config)
    models, graph, x = [net.variables] * 2, trace(net.apply, net.variables, example(config)), jnp.ones((8, 4))
    maps = [{name: identity(40) for name in ("params/layers/1", "params/layers/2")}] * 2
    headed = multi_head(net.apply, graph, models, maps, stems=True)
    middle = 40 * 40 + 40
    assert nm.parameters(headed.variables) == 2 * (nm.parameters(net.variables) - middle - 40) + middle + 40
    one = [nm.flops(lambda a, b: a @ b, jnp.ones((8, n)), jnp.ones((n, m))) for n, m in ((4, 6), (6, 40), (40, 40), (40, 3))]
    optimised = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        whole = nm.flops(headed.apply, headed.variables, x)
    finally:
        jax.config.update("jax_disable_most_optimizations", optimised)
    products = 2 * sum(one) - one[2]
    assert products < whole < products + one[2] / 2  # what is elementwise comes on top


def test_stems_must_end_in_layers():
    def looped(v, x):
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ v["in"], v["loop"])
        return h @ v["out"]

    def scaled(v, x):
        return jnp.tanh(jnp.tanh(x @ v["in"])[:, :, None] * v["scale"]).sum(1) @ v["out"]

    for function, shapes in (
        (looped, {"in": (4, 3), "loop": (2, 3, 3), "out": (3, 2)}),
        (scaled, {"in": (4, 3), "scale": (1, 3, 5), "out": (5, 2)}),
    ):
        v = {name: jnp.ones(shape) for name, shape in shapes.items()}
        side_by_side([function] * 2, (), [v, v], jnp.ones((2, 4)))
        path = min(set(shapes) - {"in", "out"})
        with pytest.raises(ValueError, match=f"'{path}' is .* cannot be averaged: cut elsewhere"):
            side_by_side([function] * 2, (path,), [v, v], jnp.ones((2, 4)))


def test_tasks_with_different_numbers_of_labels_keep_their_classifiers():
    configs = [Mlp(inputs=4, hidden=(6, 5), classes=c) for c in (3, 7)]
    nets = [build(c) for c in configs]
    graphs = [trace(net.apply, net.variables, example(c)) for net, c in zip(nets, configs, strict=True)]
    maps = [{n.name: permutation(jnp.arange(n.size)) for n in graphs[0].nodes.values()}] * 2
    x = jnp.ones((2, 4))
    headed = multi_head([net.apply for net in nets], graphs, [net.variables for net in nets], maps)
    assert [y.shape for y in headed.apply(headed.variables, x)] == [(2, 3), (2, 7)]
    assert nm.evaluate(headed.apply.head(1), headed.variables, [(x, np.array([6, 0]))]).examples == 2


def test_classifiers_of_different_labels_are_not_averaged_by_mistake():
    """Whatever tries to names the classifier, its shapes and what keeps one for each model."""
    configs = [Mlp(inputs=4, hidden=(6,), classes=c) for c in (3, 7)]
    nets = [build(c) for c in configs]
    models = [net.variables for net in nets]
    graphs = [trace(net.apply, net.variables, example(c)) for net, c in zip(nets, configs, strict=True)]
    told = r"'params/layers/1/bias' .*shapes? \(3,\).*\(7,\).*merged by npmerge.multi_head, with maps of the nodes"
    for attempt in (
        lambda: mean_of(align(ZipIt(matcher="identity"), graphs, models)),
        lambda: align(OptimalTransport("weights"), graphs, models),
    ):
        with pytest.raises(ValueError, match=told):
            attempt()


def test_a_stream_is_cut_at_the_end_of_a_stage():
    message = (
        "'params/blocks/0/conv2/kernel' makes units of 'params/conv', which is merged, from 'params/blocks/0/conv1', which is"
    )
    with pytest.raises(ValueError, match=message):
        multi_head(NET.apply, GRAPH, [MODEL, MODEL], maps_of([MODEL, MODEL], NODES[:1]))


def test_what_is_shared_is_stored_and_computed_once():
    """Two heads behind all but the classifier cost little more than one network; behind the first stage, much more."""
    models, optimised = [MODEL, generic(NET.variables, 1)], jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        cost = [
            [nm.flops(headed.apply, headed.variables, X) / nm.flops(NET.apply, MODEL, X), nm.parameters(headed.variables)]
            for headed in (multi_head(NET.apply, GRAPH, models, maps_of(models, NODES[:k])) for k in (2, len(NODES)))
        ]
    finally:
        jax.config.update("jax_disable_most_optimizations", optimised)
    assert 1 < cost[1][0] < 1.1 < cost[0][0] < 2
    classifier = sum(x.size for x in jax.tree.leaves(MODEL["params"]["head"]))
    assert cost[1][1] == nm.parameters(MODEL) + classifier < cost[0][1] < 2 * nm.parameters(MODEL)


def test_maps_must_be_of_the_same_nodes():
    with pytest.raises(ValueError, match=r"maps of the same nodes for each of 2 models: got \[\['params/conv'\], \[\]\]"):
        multi_head(NET.apply, GRAPH, [MODEL, MODEL], [maps_of([MODEL, MODEL], NODES[:1])[0], {}])
    with pytest.raises(ValueError, match=r"for each of 2 models: got \[\[\], \[\]\]"):
        multi_head(NET.apply, GRAPH, [MODEL, MODEL], [{}, {}])


def test_what_is_no_merge_of_networks_is_told():
    models, maps = [MODEL, MODEL], maps_of([MODEL, MODEL], NODES[:2])
    nan = jax.tree.map(lambda x: x * jnp.nan, MODEL)
    wide = [maps[0], {name: apart(GRAPH.nodes[name].size, 0) for name in NODES[:2]}]
    for arguments, told in (
        ((NET.apply, GRAPH, [MODEL, nan], maps), "model 1 has .* non-finite values"),
        ((NET.apply, GRAPH, models, wide), r"the maps bring node 'params/conv' to different widths: \[4, 8\], one for each"),
        (([NET.apply], GRAPH, models, maps), "expected a function, or one for each of 2 models: got 1"),
        (([NET.apply, MODEL], GRAPH, models, maps), "expected a function, or one for each model: got dict"),
        ((NET.apply, GRAPH, MODEL, maps), "expected a list of models, got dict"),
        ((NET.apply, GRAPH, models, [NODES, NODES]), "the maps of model 0 must be node -> NodeMap, got"),
        ((NET.apply, GRAPH, models, [{NODES[0]: np.eye(4)}] * 2), "the map of 'params/conv' in model 0 must be a NodeMap, got"),
    ):
        with pytest.raises(ValueError, match=told):
            multi_head(*arguments)
    with pytest.raises(ValueError, match="expected a function, or one for each of 2 models: got 3"):
        multi_head(NET.apply, GRAPH, models, maps, train_apply=[NET.train_apply] * 3)
    headed = multi_head(NET.apply, GRAPH, models, maps, train_apply=NET.apply)
    with pytest.raises(ValueError, match=r"train_apply must return \(outputs, variables.*: is it training mode\?"):
        reset_statistics(headed.train_apply, headed.variables, [(X, None)])
    for number, told in (
        (2, "no head 2: there are 2, counted from 0"),
        (-1, "the number of a head must be an integer of 0 or"),
    ):
        with pytest.raises(ValueError, match=told):
            headed.apply.head(number)
    with pytest.raises(ValueError, match=r"expected the variables that multi_head made, .* with 2 heads: got dict"):
        headed.apply(MODEL, X)


def test_zipped_up_to_a_node():
    """Two tasks with other labels on one body: the zip finds the second's units in the first's, each keeps its classifier."""
    configs = [Mlp(inputs=4, hidden=(6, 5), classes=c) for c in (3, 7)]
    nets = [abstract(c) for c in configs]
    first, second = (generic(net.variables, k) for k, net in enumerate(nets))
    graphs = [trace(net.apply, v, example(c)) for net, v, c in zip(nets, (first, second), configs, strict=True)]
    order, body = np.array([4, 2, 0, 5, 1, 3]), next(iter(graphs[0].nodes))
    own = second["params"] | {"layers": second["params"]["layers"] | {0: first["params"]["layers"][0]}}
    second = transport(graphs[1], {body: permutation(order)}, second | {"params": own})
    applies, x = [net.apply for net in nets], jax.random.normal(jax.random.key(0), (64, 4))
    stats = nm.collect(applies, graphs, [first, second], [(x, None)], [nm.JointMoments()])
    method = ZipIt(stop=body)
    maps = method.maps(method.init(graphs, [first, second], stats=stats), graphs[0])
    headed = multi_head(applies, graphs, [first, second], maps)
    for outputs, apply, model in zip(headed.apply(headed.variables, x), applies, (first, second), strict=True):
        chex.assert_trees_all_close(outputs, apply(model, x), rtol=1e-4, atol=1e-4)
