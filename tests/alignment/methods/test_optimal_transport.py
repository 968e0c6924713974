"""Optimal transport of units: couplings against brute force and linear programming, networks against their own function."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linprog

from alignment import JointMoments, NodeMap, OptimalTransport, align, resize, trace, transport
from alignment.labels import NodeAxis
from alignment.methods import couplings
from alignment.methods.couplings import coupling, masses_of, support
from npmerge import Aligned, Average, CrossEntropy, collect, fit, stack_models, weight_space
from npmerge.models import ResNetCifar, abstract, example
from tests.alignment import networks
from tests.alignment.test_zoo import network
from tests.contract.test_models import generic, inputs

COSTS = pytest.mark.parametrize("cost", ["activations", "weights"])


def ones(n):
    return np.ones(n, int)


# couplings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("solver", ["_by_assignment", "_by_programming"])
def test_uniform_masses_give_the_best_permutation(n, solver, monkeypatch):
    """Against all of them; the entries are 1/n exactly, not 0.999/n."""
    monkeypatch.setattr(couplings, "LARGEST_ASSIGNMENT", 10**6 if solver == "_by_assignment" else 0)
    cost = np.random.default_rng(0).standard_normal((n, n))
    plan = coupling(cost, ones(n), 3 * ones(n))
    best = min(itertools.permutations(range(n)), key=lambda p: cost[np.arange(n), list(p)].sum())
    np.testing.assert_array_equal(plan * n, np.eye(n)[list(best)])


@pytest.mark.parametrize("limit", [0, 10**6])
@pytest.mark.parametrize(("rows", "columns"), [([1] * 4, [1] * 6), ([1] * 7, [1] * 3), ([2, 1, 1], [1] * 5), ([1], [1, 2])])
def test_rectangular_and_unequal_masses_against_linear_programming(rows, columns, limit, monkeypatch):
    monkeypatch.setattr(couplings, "LARGEST_ASSIGNMENT", limit)
    n, m, cost = len(rows), len(columns), np.random.default_rng(0).standard_normal((len(rows), len(columns)))
    plan = coupling(cost, np.array(rows), np.array(columns))
    marginals = np.concatenate([np.array(rows) / sum(rows), np.array(columns) / sum(columns)])
    sums = [np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))]
    np.testing.assert_allclose(np.concatenate([plan.sum(1), plan.sum(0)]), marginals, rtol=1e-12)
    assert (plan >= 0).all()
    assert np.vdot(plan, cost) == pytest.approx(linprog(cost.ravel(), A_eq=np.concatenate(sums), b_eq=marginals).fun, abs=1e-9)


def test_the_entropic_coupling_tends_to_the_exact_one():
    cost = np.random.default_rng(4).uniform(size=(6, 4))  # none of whose couplings come near the best
    exact = coupling(cost, ones(6), ones(4))
    plans = [coupling(cost, ones(6), ones(4), regularisation=r) for r in (1.0, 0.1, 0.01, 0.001)]
    gaps = [np.vdot(plan - exact, cost) for plan in plans]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.01
    assert abs(gaps[-1]) < 1e-6
    np.testing.assert_allclose(plans[-1], exact, atol=1e-4)
    np.testing.assert_array_equal(coupling(cost, ones(6), ones(4), regularisation=1e-300), exact)


@pytest.mark.parametrize("regularisation", [0.05, 1.0])
def test_the_entropic_coupling_is_the_optimum(regularisation):
    """Its masses hold, and log T + C / regularisation is a sum of a row's and a column's number."""
    rows, columns, cost = np.array([1, 2, 3]), ones(5), np.random.default_rng(0).uniform(size=(3, 5))
    plan = coupling(cost, rows, columns, regularisation=regularisation)
    np.testing.assert_allclose(plan.sum(1), rows / 6, rtol=1e-6)
    np.testing.assert_allclose(plan.sum(0), columns / 5, rtol=1e-6)
    potential = np.log(plan) + cost / regularisation
    mixed = potential - potential[:1] - potential[:, :1] + potential[:1, :1]
    np.testing.assert_allclose(mixed, 0, atol=1e-9)


def test_strong_regularisation_gives_the_product_of_the_masses():
    plan = coupling(np.random.default_rng(0).uniform(size=(3, 2)), np.array([1, 2, 1]), ones(2), regularisation=1e6)
    np.testing.assert_allclose(plan, np.outer([0.25, 0.5, 0.25], [0.5, 0.5]), atol=1e-6)


def test_couplings_of_bad_arguments():
    cost = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"shape \(2, 3\) needs as many masses, got 2 and 2"):
        coupling(cost, ones(2), ones(2))
    for masses in (np.array([0, 1]), np.array([0.5, 0.5])):
        with pytest.raises(ValueError, match="masses must be positive whole numbers"):
            coupling(cost, masses, ones(3))
    with pytest.raises(ValueError, match="non-finite"):
        coupling(cost + np.nan, ones(2), ones(3))
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="regularisation must be a finite number of 0 or more, got"):
            coupling(cost, ones(2), ones(3), regularisation=bad)


def test_new_units_are_copies_in_turn_or_groups_of_near_ones():
    points = np.array([0.0, 5.0, 0.1, 9.0, 5.0, 0.2])
    distances = np.abs(np.subtract.outer(points, points))
    wide, narrow = support(distances, 8), support(distances, 3)
    np.testing.assert_array_equal(wide, np.eye(6)[[0, 1, 2, 3, 4, 5, 0, 1]])
    np.testing.assert_array_equal(masses_of(wide), [1, 1, 2, 2, 2, 2, 1, 1])
    np.testing.assert_array_equal(narrow, [[0, 1, 0, 0, 1, 0], [1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(masses_of(narrow), [2, 3, 1])
    np.testing.assert_array_equal(support(np.zeros((4, 4)), 2).sum(1), [3, 1])  # all at one place: no new unit is empty


# networks -------------------------------------------------------------------------------------------------------------

X = networks.data(64, 5)


def filled(shapes, seed):
    """Variables of these shapes."""
    leaves = jax.tree.map(lambda s: networks.Shape(s, jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple))
    return networks.fill(leaves, seed)


def stats_for(method, applies, graphs, models, x=None):
    """The statistics that a method needs."""
    return collect(applies, graphs, models, [(X if x is None else x, None)], method.needs) if method.needs else None


apply = jax.jit(networks.mlp_apply(jax.nn.relu))


@functools.cache
def graph(*widths):
    return trace(apply, model(widths, 0), X)


def model(widths, seed):
    a, b = widths
    return networks.fill({"first": networks.layer(5, a), "second": networks.layer(a, b), "out": networks.layer(b, 3)}, seed)


def copied(variables, first, second):
    """The same function: unit i of a layer is a copy of unit `first[i]`, what is read from a unit is divided among them."""

    def split(index):
        push = np.eye(max(index) + 1, dtype=np.float32)[np.asarray(index)]
        return NodeMap(push, push.T / push.sum(0)[:, None])

    return transport(graph(max(first) + 1, max(second) + 1), {"first": split(first), "second": split(second)}, variables)


def fused(method, models):
    """The average of the transported models."""
    graphs = [graph(m["first"]["bias"].size, m["second"]["bias"].size) for m in models]
    stats = stats_for(method, apply, graphs, models)
    return jax.tree.map(lambda *leaves: sum(map(np.asarray, leaves)) / len(leaves), *align(method, graphs, models, stats=stats))


def widths(variables):
    return variables["first"]["bias"].size, variables["second"]["bias"].size


def same_function(a, b):
    np.testing.assert_allclose(apply(a, X), apply(b, X), rtol=1e-4, atol=1e-5)


def order(n, times, seed):
    return np.random.default_rng(seed).permutation(np.tile(np.arange(n), times))


@COSTS
def test_permuted_copies_are_recovered_exactly(cost):
    first = model((8, 7), 0)
    models = [first, copied(first, order(8, 1, 1), order(7, 1, 2)), copied(first, order(8, 1, 3), order(7, 1, 4))]
    method = OptimalTransport(cost)
    stats = stats_for(method, apply, graph(8, 7), models)
    for got in align(method, graph(8, 7), models, stats=stats):
        chex.assert_trees_all_equal(got, first)


@COSTS
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("width", [None, 32, 64])
def test_networks_of_32_and_64_units_with_one_function_merge_to_it_at_either_width(cost, turned, width):
    narrow = model((32, 32), 0)
    models = [narrow, copied(narrow, order(32, 2, 1), order(32, 2, 2))]
    models = models[::-1] if turned else models
    merged = fused(OptimalTransport(cost, width=width), models)
    assert widths(merged) == (width or len(models[0]["first"]["bias"]),) * 2
    same_function(merged, narrow)


@COSTS
@pytest.mark.parametrize("width", [8, 11, 16, 19])
def test_copies_of_a_network_are_widened_exactly_to_any_width(cost, width):
    """Also where not every unit is split as often."""
    first = model((8, 7), 0)
    merged = fused(OptimalTransport(cost, width=width), [first, copied(first, order(8, 1, 1), order(7, 1, 2))])
    assert widths(merged) == (width, width)
    same_function(merged, first)
    same_function(fused(OptimalTransport(cost, width=width), [first]), first)


@COSTS
def test_equal_units_are_joined_exactly_however_many_there_are_of_each(cost):
    first = model((4, 3), 0)
    wide = copied(first, [0, 1, 2, 3, 3, 3, 0, 1, 3], [2, 0, 1, 0, 0])
    merged = fused(OptimalTransport(cost, width=(("first", 4), ("second", 3))), [wide, wide])
    assert widths(merged) == (4, 3)
    same_function(merged, first)
    same_function(fused(OptimalTransport(cost, width=(("second", 3),)), [wide]), first)


@COSTS
def test_three_models_of_three_widths(cost):
    first = model((6, 5), 0)
    models = [copied(first, order(6, 2, 1), order(5, 3, 1)), first, copied(first, order(6, 3, 2), order(5, 1, 2))]
    for width in (None, (("first", 6), ("second", 5)), (("first", 18),), 30):
        same_function(fused(OptimalTransport(cost, width=width), models), first)


@COSTS
def test_couplings_have_uniform_masses_and_the_model_with_the_width_stays(cost):
    models = [model((6, 4), 0), model((9, 6), 1), model((4, 9), 2)]
    graphs = [graph(*widths(m)) for m in models]
    method = OptimalTransport(cost, width=9)
    stats = stats_for(method, apply, graphs, models)
    maps = method.maps(method.init(graphs, models, stats=stats), graphs[0])
    np.testing.assert_array_equal(maps[1]["first"].push, np.eye(9))
    np.testing.assert_array_equal(maps[2]["second"].pull, np.eye(9))
    for own, found in zip(graphs, maps, strict=True):
        for name, m in found.items():
            n = own.nodes[name].size
            assert (m.push.shape, m.pull.shape) == ((9, n), (n, 9))
            np.testing.assert_allclose(m.push / 9, m.pull.T / n, rtol=1e-5)  # both are the coupling
            np.testing.assert_allclose(m.push.sum(1), 1, rtol=1e-5)
            np.testing.assert_allclose(m.pull.sum(1), 1, rtol=1e-5)


def test_soft_transport_tends_to_the_exact_one():
    models, graphs = [model((8, 7), 0), model((6, 5), 1)], [graph(8, 7), graph(6, 5)]
    stats = collect(apply, graphs, models, [(X, None)], [JointMoments()])
    exact = OptimalTransport().init(graphs, models, stats=stats)
    gaps = []
    for regularisation in (1.0, 0.1, 1e-4):
        soft = OptimalTransport(regularisation=regularisation).init(graphs, models, stats=stats)
        np.testing.assert_allclose(soft[1]["first"].push.sum(1), 1, rtol=1e-5)
        np.testing.assert_allclose(soft[1]["first"].pull.sum(1), 1, rtol=1e-5)
        gaps.append(max(np.abs(soft[1][n].push - exact[1][n].push).max() for n in ("first", "second")))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-6


def test_weights_are_compared_in_the_new_units_of_the_layer_before():
    """Without that the second layer of a permuted copy is not recovered."""
    first = model((8, 7), 0)
    other = copied(first, order(8, 1, 1), order(7, 1, 2))
    theta = OptimalTransport("weights").init(graph(8, 7), [first, other])
    np.testing.assert_array_equal(theta[1]["second"].push.argmax(1), np.argsort(order(7, 1, 2)))
    rows = [np.concatenate([m["second"]["kernel"], m["second"]["bias"][None]]).T for m in (first, other)]
    alone = coupling(np.linalg.norm(rows[0][:, None] - rows[1][None], axis=-1), ones(7), ones(7))
    assert (alone.argmax(1) != np.argsort(order(7, 1, 2))).any()


# other architectures --------------------------------------------------------------------------------------------------


def flattened(v, x):
    """A convolution and a dense layer on its flattened image."""
    h = jax.lax.conv_general_dilated(x, v["conv"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(h).reshape(len(x), -1) @ v["dense"]


def image_network(name, times):
    """A network with so many times its units."""
    if name == "flattened":
        variables = filled({"conv": (3, 3, 3, 4 * times), "dense": (64 * times, 3)}, 0)
        return networks.Network(name, jax.jit(flattened), variables, networks.IMAGES, {})
    widths = (4 * times, 8 * times, 14 * times)  # enough for two padded channels on each side
    return networks.linen(name, networks.ResNet(widths, pad=name == "padded"), {})


@COSTS
@pytest.mark.parametrize("name", ["flattened", "projected", "padded"])
def test_an_image_network_and_its_double(name, cost):
    """BatchNorm, strides, both kinds of shortcuts, a flattened image."""
    nets, maps, rng = [image_network(name, times) for times in (1, 2)], {}, np.random.default_rng(0)
    for node in nets[0].graph.nodes.values():
        push = rng.permutation(np.tile(np.eye(node.size, dtype=np.float32), (2, 1)))
        maps[node.name] = NodeMap(push, push.T / 2)
    models = [nets[0].variables, transport(nets[0].graph, maps, nets[0].variables)]
    expected = nets[0].apply(models[0], networks.IMAGES)
    turn = 1 if name == "padded" else -1  # which is the reference
    graphs, applies, method = [net.graph for net in nets][::turn], [net.apply for net in nets][::turn], OptimalTransport(cost)
    aligned = align(method, graphs, models[::turn], stats=stats_for(method, applies, graphs, models[::turn], networks.IMAGES))
    chex.assert_trees_all_equal_shapes(*aligned, models[::turn][0])
    got = applies[0](jax.tree.map(lambda a, b: (np.asarray(a) + np.asarray(b)) / 2, *aligned), networks.IMAGES)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * float(jnp.abs(expected).max()))


@COSTS
def test_residual_networks_of_two_widths_merge_at_a_third(cost):
    configs = [ResNetCifar(1, width, "A", classes=3, side=8, channels=2) for width in (4, 8)]
    nets, x = [abstract(c) for c in configs], inputs(configs[0])
    models = [generic(net.variables, k) for k, net in enumerate(nets)]
    graphs = [trace(net.apply, m, example(c)) for net, m, c in zip(nets, models, configs, strict=True)]
    method = OptimalTransport(cost, width=tuple((name, node.size + 2) for name, node in graphs[0].nodes.items()))
    aligned = align(method, graphs, models, stats=stats_for(method, [net.apply for net in nets], graphs, models, x))
    merged = jax.tree.map(lambda a, b: (np.asarray(a) + np.asarray(b)) / 2, *aligned)
    outputs = jax.jit(resize(nets[0].apply, graphs[0], merged))(merged, x)
    assert outputs.shape == (4, 3)
    chex.assert_tree_all_finite(outputs)


HEADS = [(name, cost) for name in ("fused_attention", "grouped_queries", "towers") for cost in ("activations", "weights")]


@pytest.mark.parametrize(("name", "cost"), [pair for pair in HEADS if pair != ("grouped_queries", "weights")])
def test_heads_and_layers_of_a_scan_are_permuted(name, cost):
    net = networks.network(name)
    other, _ = networks.shuffle(net.graph, net.variables, 1)
    method, models = OptimalTransport(cost), [net.variables, other]
    stats = stats_for(method, net.apply, net.graph, models, net.inputs)
    chex.assert_trees_all_close(align(method, net.graph, models, stats=stats)[1], net.variables, rtol=1e-5, atol=1e-6)


def test_nodes_without_features_stay_and_are_named():
    """The queries of a group are made by one kernel together with the units inside them."""
    net = networks.network("grouped_queries")
    with pytest.warns(UserWarning, match="OptimalTransport leaves nodes without weights to compare as they are: query#2$"):
        aligned = align(OptimalTransport("weights"), net.graph, [net.variables, net.another(1)])
    chex.assert_trees_all_close(net.apply(aligned[1], net.inputs), net.apply(net.another(1), net.inputs), rtol=1e-4, atol=1e-5)
    moments = collect(apply, graph(8, 7), [model((8, 7), 0)] * 2, [(X, None)], [JointMoments()])[JointMoments]
    stats = {JointMoments: {"first": moments["first"]}}
    with pytest.raises(ValueError, match="node 'second' has no features to compare, so it cannot become 9 units wide"):
        align(OptimalTransport(width=(("second", 9),)), graph(8, 7), [model((8, 7), 0)] * 2, stats=stats)


@COSTS
def test_a_residual_stream_is_widened_around_its_heads(cost):
    net = networks.network("fused_attention")
    models = [net.variables, networks.shuffle(net.graph, net.variables, 1)[0]]
    method = OptimalTransport(cost, width=14)
    aligned = align(method, net.graph, models, stats=stats_for(method, net.apply, net.graph, models, net.inputs))
    merged = jax.tree.map(lambda a, b: (np.asarray(a) + np.asarray(b)) / 2, *aligned)
    assert (merged["embed"].shape, merged["qkv"].shape) == ((5, 14), (14, 20))
    got, expected = jax.jit(resize(net.apply, net.graph, merged))(merged, net.inputs), net.apply(net.variables, net.inputs)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def stacked(v, x):
    """Layers in a scan: the units of each have a coupling of their own."""

    def block(x, w):
        h = jnp.tensordot(x, w["up"], 1)
        return x + jnp.tensordot(jax.nn.relu(h + jnp.broadcast_to(w["bias"], h.shape)), w["down"], 1), None

    return jnp.tensordot(jax.lax.scan(block, jnp.tensordot(x, v["embed"], 1), v["layers"])[0], v["head"], 1)


@COSTS
def test_every_layer_of_a_scan_has_its_own_coupling(cost):
    layers = {"up": (3, 4, 6), "bias": (3, 6), "down": (3, 6, 4)}
    shapes = {"embed": (5, 4), "layers": layers, "head": (4, 3)}
    first, push = filled(shapes, 0), np.stack([np.eye(6, dtype=np.float32)[order(6, 2, k)] for k in range(3)])
    graph = trace(stacked, first, X)
    (units,) = [n.name for n in graph.nodes.values() if n.copies]
    wide = transport(graph, {units: NodeMap(push, push.mT / 2)}, first)
    graphs, models, method = [graph, trace(stacked, wide, X)], [first, wide], OptimalTransport(cost)
    for got in align(method, graphs, models, stats=stats_for(method, stacked, graphs, models)):
        chex.assert_trees_all_close(got, first, rtol=1e-5, atol=1e-6)


def test_it_is_learned_with_the_merge():
    """At a width that neither model has."""
    targets = jnp.asarray(np.random.default_rng(0).integers(0, 3, len(X)))
    models = [model((6, 5), 0), model((6, 5), 1)]
    stats = collect(apply, graph(6, 5), models, [(X, None)], [JointMoments()])
    stack, merge = stack_models(models), Aligned(OptimalTransport(width=8), Average(), graph(6, 5))
    theta = merge.init(stack, stats=stats)
    assert widths(merge.apply(theta, stack)) == (8, 8)
    larger = resize(apply, graph(6, 5), merge.apply(theta, stack))
    loss = weight_space(merge, larger, CrossEntropy())
    found = fit(theta, loss, stack, itertools.repeat((X, targets)), optax.adam(0.02), steps=10)
    assert float(loss(found.theta, stack, (X, targets))) < float(loss(theta, stack, (X, targets))) - 0.01


# what is refused ------------------------------------------------------------------------------------------------------


def test_bad_fields():
    for bad in (-0.1, float("nan"), float("inf"), "much", None):
        with pytest.raises(ValueError, match="regularisation must be a finite number of 0 or more, got"):
            OptimalTransport(regularisation=bad)
    for bad in (0, -3, 2.5, True, "wide"):
        with pytest.raises(ValueError, match=f"width must be an integer of 1 or more, got {bad!r}"):
            OptimalTransport(width=bad)
    for bad in (0, 2.5, "wide"):
        with pytest.raises(ValueError, match=f"width of 'first' must be an integer of 1 or more, got {bad!r}"):
            OptimalTransport(width=(("first", bad),))
    for bad in (("first", 3), ("first",), [("first", 3)], {"first": 3}, ((3, "first"),)):
        with pytest.raises(ValueError, match=r"width must be a tuple of \(node, units\), got"):
            OptimalTransport(width=bad)
    with pytest.raises(ValueError, match=r"width names 'first' twice: \(\('first', 3\), \('first', 4\)\)"):
        OptimalTransport(width=(("first", 3), ("first", 4)))
    with pytest.raises(ValueError, match="cost must be one of 'activations', 'weights', got 'both'"):
        OptimalTransport("both")
    assert hash(OptimalTransport(width=(("first", 3),))) == hash(OptimalTransport(width=(("first", 3),)))


def test_statistics_and_widths_are_checked():
    models, graphs = [model((8, 7), 0), model((6, 5), 1)], [graph(8, 7), graph(6, 5)]
    with pytest.raises(
        ValueError, match=r"OptimalTransport needs activations: pass stats=npmerge.collect\(.*\[JointMoments\(\)\]\)"
    ):
        align(OptimalTransport(), graphs, models)
    stats = collect(apply, graphs, models, [(X, None)], [JointMoments()])
    with pytest.raises(ValueError, match=r"got models with 6 \+ 8 units at node 'second', but the statistics are of 12"):
        align(OptimalTransport(), [graph(8, 6), graph(6, 8)], [model((8, 6), 0), model((6, 8), 0)], stats=stats)
    with pytest.raises(ValueError, match="unknown node in width 'frist': the nearest is 'first'"):
        align(OptimalTransport(width=(("frist", 3),)), graphs, models, stats=stats)
    broken = {JointMoments: {n: m._replace(mean=m.mean * jnp.nan) for n, m in stats[JointMoments].items()}}
    with pytest.raises(ValueError, match="non-finite moments of node 'first'"):
        align(OptimalTransport(), graphs, models, stats=broken)


def test_other_architectures_are_refused():
    other = networks.network("nnx_state")
    with pytest.raises(ValueError, match="model 1 is of another architecture than model 0: only one of them has the node"):
        align(OptimalTransport("weights"), [graph(8, 7), other.graph], [model((8, 7), 0), other.variables])


def gated(v, x):
    """Heads of units."""
    h = jnp.einsum("bi,ihd->bhd", x, v["up"])
    return jnp.einsum("bhd,hdo->bo", jax.nn.relu(h), v["down"])


def test_heads_keep_their_number():
    def heads(n, inside):
        return filled({"up": (5, n, inside), "down": (n, inside, 3)}, 0)

    models = [heads(2, 4), heads(2, 6), heads(3, 4)]
    graphs = [trace(gated, m, X) for m in models]
    rule = r"keeps its width \((it is inside .*|others are inside it)\): expected the"
    for k, node, got in ((1, "up#2", "4 units of model 0, got 6"), (2, "up#1", "2 units of model 0, got 3")):
        with pytest.raises(ValueError, match=f"'{node}' {rule} {got} in model 1"):
            align(OptimalTransport("weights"), [graphs[0], graphs[k]], [models[0], models[k]])
    with pytest.raises(ValueError, match=f"'up#1' {rule} 2 units of model 0, got 5 in the width asked for"):
        align(OptimalTransport("weights", width=(("up#1", 5),)), graphs[0], models[:1])


@COSTS
def test_an_embedding_that_is_the_output_layer_keeps_its_width(cost):
    net = network("tied_embedding")
    models = [net.variables, networks.shuffle(net.graph, net.variables, 1)[0]]
    name, size = next((axis.node, axis.size) for axis in net.graph.axes["table"] if isinstance(axis, NodeAxis))
    stats = stats_for(OptimalTransport(cost), net.apply, net.graph, models, net.inputs)
    method = OptimalTransport(cost, width=9)
    merged = jax.tree.map(lambda a, b: (a + b) / 2, *align(method, net.graph, models, stats=stats))
    assert merged["table"].shape == net.variables["table"].shape
    got = resize(net.apply, net.graph, merged)(merged, net.inputs)
    np.testing.assert_allclose(got, net.apply(net.variables, net.inputs), rtol=1e-3, atol=1e-4)
    told = rf"'{name}' keeps its width \('table' both writes and reads it\): expected the {size} units of model 0, got 9 in"
    with pytest.raises(ValueError, match=told):
        align(OptimalTransport(cost, width=((name, 9),)), net.graph, models, stats=stats)


def test_pinned_axes_of_other_lengths_are_refused():
    """Sorted units have no symmetry that the graph knows: two widths of them cannot meet."""

    def apply(v, x):
        return jnp.sort(jax.nn.relu(x @ v["first"]) @ v["sorted"]) @ v["out"]

    models = [filled({"first": (5, 4), "sorted": (4, n), "out": (n, 3)}, 0) for n in (6, 8)]
    graphs = [trace(apply, m, X) for m in models]
    with pytest.raises(ValueError, match=r"'out' would have shape \(6, 3\) in model 0 and \(8, 3\) in model 1: .*multi_head"):
        align(OptimalTransport("weights"), graphs, models)


def test_a_single_model_at_its_own_width_needs_no_statistics():
    (alone,) = align(OptimalTransport(width=(("first", 8),)), graph(8, 7), [model((8, 7), 0)])
    chex.assert_trees_all_equal(alone, model((8, 7), 0))
