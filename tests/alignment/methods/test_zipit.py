"""ZipIt on networks whose zip is known."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import (
    ActivationMatching,
    JointMoments,
    NodeMoments,
    ZipIt,
    align,
    rectangular,
    resize,
    trace,
    transport,
)
from alignment.graph import flatten
from alignment.methods import matchers
from alignment.separability import held, rigid
from npmerge.models import Gpt2, abstract, example
from tests.alignment import networks
from tests.contract.test_models import generic
from tests.contract.test_models import inputs as data_of

ALPHAS, BETAS = (0.0, 1e-4, 0.3, 1.0), (0.0, 0.125, 1.0)
STATISTIC = JointMoments()
INPUTS = {name: networks.data(4, 6, 5) for name in ("attention", "fused_attention", "grouped_queries")}
INPUTS |= {name: networks.data(6, 8, 8, 3) for name in ("resnet", "option_a", "vgg")}
NETWORKS = ("mlp", "resnet", "option_a", "vgg", "concatenation", "towers", "attention", "fused_attention", "grouped_queries")


def inputs(name):
    return INPUTS.get(name, networks.data(48, *networks.network(name).inputs.shape[1:]))


def measured(apply, graph, models, x, statistic=STATISTIC):
    state = jax.jit(lambda models, x: statistic.measure(apply, graph, models, (x, None)))(models, x)
    return {type(statistic): statistic.finalise(state)}


@functools.cache
def measurer(name):
    net = networks.network(name)
    return jax.jit(lambda models, x: STATISTIC.measure(net.apply, net.graph, models, (x, None)))


def stats_of(name, models):
    return {JointMoments: STATISTIC.finalise(measurer(name)(models, inputs(name)))}


def mean(models):
    return jax.tree.map(lambda *x: sum(map(np.asarray, x)) / len(x), *models)


def zipped(method, name, models, stats=None):
    stats = stats_of(name, models) if stats is None else stats
    return mean(align(method, networks.network(name).graph, models, stats=stats))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("beta", BETAS)
def test_two_identical_models_are_the_model(alpha, beta):
    net = networks.network("mlp")
    chex.assert_trees_all_close(zipped(ZipIt(alpha=alpha, beta=beta), "mlp", [net.variables] * 2), net.variables, rtol=1e-6)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (1.0, 1.0), (0.3, 0.0), (1e-4, 0.0), (0.0, 0.0)])
def test_three_identical_models_are_the_model_unless_discounted_beside_matches_inside(alpha, beta):
    net = networks.network("mlp")
    chex.assert_trees_all_close(zipped(ZipIt(alpha=alpha, beta=beta), "mlp", [net.variables] * 3), net.variables, rtol=1e-6)


def of_the_first(models, joint):
    """The moments of the first of three models."""
    units = joint.mean.shape[-1] // 3 * models
    return joint._replace(mean=joint.mean[..., :units], covariance=joint.covariance[..., :units, :units])


@pytest.mark.parametrize("name", NETWORKS)
def test_permuted_copies_come_back(name):
    """Of units, in every copy of a scan, of heads and of what is inside them."""
    net = networks.network(name)
    two, three = (networks.shuffle(net.graph, net.variables, seed)[0] for seed in (5, 6))
    every = [net.variables, two, three]
    joint = stats_of(name, every)[JointMoments]
    for models in (every[:2], every):
        stats = {JointMoments: {node: of_the_first(len(models), m) for node, m in joint.items()}}
        for method in (ZipIt(alpha=1.0, beta=0.0), ZipIt(alpha=0.0, beta=0.0), ZipIt(matcher="k-means")):
            chex.assert_trees_all_close(zipped(method, name, models, stats), net.variables, rtol=1e-5, atol=1e-6)


def test_models_of_one_graph_are_moved_by_one_program_whatever_the_method():
    """Maps of one shape: no other alpha, matcher or number of models compiles anything again."""
    net = networks.network("tanh_mlp")
    models = [net.variables, *(networks.shuffle(net.graph, net.variables, seed)[0] for seed in (5, 6))]
    sizes = []
    for method, some in ((ZipIt(alpha=0.5), models[:2]), (ZipIt(alpha=0.6), models), (ZipIt(matcher="identity"), models)):
        zipped(method, "tanh_mlp", some)
        sizes.append(alignment.maps._moved._cache_size() + alignment.base._moved_at_once._cache_size())
    assert sizes[0] == sizes[1] == sizes[2]


def widened(name):
    """A network in which every unit stands twice, read by 0.3 and 0.7: its function, variables and graph."""
    net = networks.network(name)

    def twice(node):
        push = np.concatenate([np.eye(node.size, dtype=np.float32)] * 2)
        pull = np.concatenate([0.3 * push[: node.size], 0.7 * push[: node.size]], 1)
        copies = [np.broadcast_to(x, (*node.copies, *x.shape)) for x in (push, pull)]
        return rectangular(*copies)

    wide = transport(net.graph, {n.name: twice(n) for n in net.graph.nodes.values()}, net.variables)
    apply = resize(net.apply, net.graph, wide)
    return net, apply, wide, trace(apply, wide, inputs(name))


@pytest.mark.parametrize("name", ["mlp", "tanh_mlp", "resnet", "option_a", "vgg", "concatenation"])
def test_doubled_units_are_zipped_to_half_the_width_exactly(name):
    net, apply, wide, graph = widened(name)
    models, x = [wide, networks.shuffle(graph, wide, 3)[0]], inputs(name)
    expected = net.apply(net.variables, x)
    for these, width, alpha in ((models, 0.25, 1.0), (models, 0.25, 0.3), (models, 0.25, 0.0), ([wide], 0.5, 0.3)):
        stats = measured(apply, graph, these, x)
        found = mean(align(ZipIt(width, alpha=alpha, beta=1.0), graph, these, stats=stats))
        chex.assert_trees_all_equal_shapes(found, net.variables)
        chex.assert_trees_all_close(net.apply(found, x), expected, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(resize(apply, graph, found)(found, x), expected, rtol=1e-4, atol=1e-5)


def test_sixty_four_units_to_thirty_two():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((5, 32)), rng.standard_normal((32, 3))
    order, share = rng.permutation(64), rng.uniform(0.1, 0.9, 32)

    def apply(v, x):
        return jax.nn.relu(x @ v["first"]) @ v["second"]

    wide = {
        "first": np.concatenate([first, first], 1),
        "second": np.concatenate([second * s[:, None] for s in (share, 1 - share)]),
    }
    models = [wide, {"first": wide["first"][:, order], "second": wide["second"][order]}]
    models = jax.tree.map(jnp.float32, models)
    x = networks.data(300, 5)
    graph = trace(apply, models[0], x)
    stats = measured(apply, graph, models, x)
    found = mean(align(ZipIt(0.25, beta=1.0), graph, models, stats=stats))
    assert {n: v.shape for n, v in found.items()} == {"first": (5, 32), "second": (32, 3)}
    np.testing.assert_allclose(apply(found, x), apply(models[0], x), rtol=1e-4, atol=1e-4)
    with pytest.raises(
        ValueError, match=r"32 of the 128 units of 2 models at node 'first': the greedy matcher needs 64 with beta"
    ):
        align(ZipIt(0.25, beta=0.0), graph, models, stats=stats)


@pytest.mark.parametrize(
    "method", [ZipIt(0.75, alpha=1.0, beta=0.5), ZipIt(0.75, matcher="k-means"), ZipIt(0.75, matcher="exact")]
)
def test_the_average_of_the_transported_models_is_the_sum_of_merged_and_unmerged(method):
    net = networks.network("mlp")
    models = [net.variables, net.another(1)]
    stats = stats_of("mlp", models)
    found = zipped(method, "mlp", models, stats)
    theta = method.init(net.graph, models, stats=stats)
    for name, width in (("first", 12), ("second", 10)):
        merge = np.concatenate([np.asarray(model[name].push) / 2 for model in theta], 1)
        unmerge = np.concatenate([np.asarray(model[name].pull) for model in theta])
        np.testing.assert_allclose(merge.sum(1), np.ones(width), rtol=1e-6)  # rows carry 1 / count, nothing shrinks
        np.testing.assert_array_equal(unmerge.sum(1), np.ones(len(unmerge)))
        np.testing.assert_array_equal(merge > 0, unmerge.T > 0)
    by_hand = sum(
        (np.asarray(m["second"].push) / 2) @ np.asarray(v["second"]["kernel"]).T @ np.asarray(m["first"].pull)
        for m, v in zip(theta, models, strict=True)
    )
    np.testing.assert_allclose(found["second"]["kernel"], by_hand.T, rtol=1e-5, atol=1e-6)


def test_zipping_less_costs_less():
    """A width of all units is the mean of the outputs of all models; every zip adds to the distance from it."""
    net = networks.network("mlp")
    models, x = [net.variables, net.another(1)], inputs("mlp")
    stats, outputs = stats_of("mlp", models), mean([net.apply(v, x) for v in (net.variables, net.another(1))])
    wide = zipped(ZipIt(1.0), "mlp", models, stats)
    np.testing.assert_allclose(resize(net.apply, net.graph, wide)(wide, x), outputs, rtol=1e-4, atol=1e-4)
    errors = []
    for width in (1.0, 0.9, 0.5):
        found = zipped(ZipIt(width), "mlp", models, stats)
        errors.append(float(jnp.square(resize(net.apply, net.graph, found)(found, x) - outputs).mean()))
    assert errors[0] < 1e-8 < errors[1] < errors[2]


@pytest.mark.parametrize("name", ["mlp", "fused_attention"])
def test_the_identity_matcher_is_the_plain_average_and_needs_no_data(name):
    net = networks.network(name)
    models = [net.variables, net.another(1), net.another(2)]
    found = mean(align(ZipIt(matcher="identity"), net.graph, models))
    chex.assert_trees_all_close(found, mean(models), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "vgg", "towers"])
def test_the_exact_matcher_is_activation_matching(name):
    net = networks.network(name)
    models, x = [net.variables, net.another(1)], inputs(name)
    pairs = measured(net.apply, net.graph, models, x, NodeMoments())
    expected = mean(align(ActivationMatching(), net.graph, models, stats=pairs))
    chex.assert_trees_all_close(zipped(ZipIt(matcher="exact"), name, models), expected, rtol=1e-5, atol=1e-6)


def with_dead_units(variables, *units):
    first = variables["first"]
    dead = np.isin(np.arange(8), units)
    kernel, bias = (jnp.where(dead, value, first[name]) for name, value in (("kernel", 0.0), ("bias", -1.0)))
    return variables | {"first": {"kernel": kernel, "bias": bias}}


@pytest.mark.parametrize("method", [ZipIt(beta=0.5), ZipIt(alpha=1.0, beta=0.0), ZipIt(matcher="exact")])
def test_dead_units_are_paired_in_ascending_order(method):
    """They correlate with nothing: left to ties, they would be averaged into living ones."""
    net = networks.network("mlp")
    a = with_dead_units(net.variables, 2, 5)
    order = np.array([5, 0, 7, 1, 2, 6, 4, 3])
    moved = {"first": jax.tree.map(lambda x: x[..., order], a["first"]), "second": dict(a["second"]), "out": a["out"]}
    moved["second"]["kernel"] = a["second"]["kernel"][order]
    models = [a, moved]
    stats = stats_of("mlp", models)
    theta = method.init(net.graph, models, stats=stats)
    placed = np.asarray(theta[1]["first"].push).argmax(1)
    living = np.array([0, 1, 3, 4, 6, 7])
    np.testing.assert_array_equal(order[placed][living], living)
    np.testing.assert_array_equal(placed[[2, 5]], [0, 4])
    found, x = zipped(method, "mlp", models, stats), inputs("mlp")
    np.testing.assert_allclose(net.apply(found, x), net.apply(a, x), rtol=1e-4, atol=1e-5)


def test_correlations_of_joint_moments():
    net, x = networks.network("mlp"), inputs("mlp")
    models = [net.variables, net.another(1)]
    features = [np.asarray(alignment.capture(net.apply, net.graph, v, x).nodes["second"], np.float64) for v in models]
    got = matchers.similarity(stats_of("mlp", models)[JointMoments]["second"], 2)
    np.testing.assert_allclose(got, np.corrcoef(np.concatenate(features, 1).T), atol=2e-5)


def test_start_and_stop():
    net = networks.network("mlp")
    models = [net.variables, net.another(1)]
    stats = stats_of("mlp", models)

    def nodes(**bounds):
        method = ZipIt(0.75, **bounds)
        theta = method.init(net.graph, models, stats=stats)
        assert [sorted(model) for model in theta] == [sorted(method.nodes(net.graph))] * 2
        return method.nodes(net.graph)

    assert nodes() == ["first", "second"]
    assert nodes(stop="first") == ["first"]
    assert nodes(start="second") == ["second"]
    assert nodes(start="first", stop="second") == ["first", "second"]
    first, second = align(ZipIt(0.75, stop="first"), net.graph, models, stats=stats)
    for found, own in ((first, models[0]), (second, models[1])):
        assert found["second"]["kernel"].shape == (12, 7)
        chex.assert_trees_all_equal(found["out"], own["out"])
        chex.assert_trees_all_equal(found["second"]["bias"], own["second"]["bias"])
    for field in ("start", "stop"):
        with pytest.raises(ValueError, match=f"unknown node in {field} 'secnod': the nearest is 'second', expected"):
            nodes(**{field: "secnod"})
    with pytest.raises(ValueError, match="no nodes from start 'second' to stop 'first': the order is first, second"):
        nodes(start="second", stop="first")


@pytest.mark.parametrize("name", ["attention", "fused_attention", "grouped_queries", "towers"])
def test_heads_and_what_is_inside_keep_their_number(name):
    net = networks.network(name)
    models = [net.variables, net.another(1)]
    method = ZipIt(0.75, beta=0.5)
    theta = method.init(net.graph, models, stats=stats_of(name, models))
    heads = {i for node in net.graph.nodes.values() for i in node.index if i in net.graph.nodes}
    kept = {n.name for n in net.graph.nodes.values() if n.name in heads or heads & set(n.index)}
    assert kept
    for node in net.graph.nodes.values():
        if node.name in theta[1]:
            expected = node.size if node.name in kept else int(1.5 * node.size)
            assert theta[1][node.name].push.shape == (*node.copies, expected, node.size)
    for node in kept & theta[0].keys():
        np.testing.assert_array_equal(
            theta[0][node].push, np.broadcast_to(np.eye(net.graph.nodes[node].size), theta[0][node].push.shape)
        )
    found = mean(align(method, net.graph, models, stats=stats_of(name, models)))
    chex.assert_tree_all_finite(resize(net.apply, net.graph, found)(found, inputs(name)))


@pytest.fixture(scope="module")
def tied():
    """A transformer whose embedding is its output layer, and a shuffled copy: apply, graph, models, tokens, their moments."""
    config = Gpt2(vocabulary=11, width=8, layers=1, heads=2, hidden=6, length=5)
    net = abstract(config)
    model, tokens = generic(net.variables), data_of(config, n=40)
    graph = trace(net.apply, model, example(config))
    models = [model, networks.shuffle(graph, model, 3)[0]]
    return net.apply, graph, models, tokens, measured(net.apply, graph, models, tokens)


@pytest.mark.parametrize("width", [None, 0.75, 1.0])
def test_an_embedding_that_is_the_output_layer_keeps_its_width(tied, width):
    """Its units are read as they are written: side by side, they would add up to twice the logits."""
    apply, graph, models, tokens, stats = tied
    merged = mean(align(ZipIt(width, beta=0.0), graph, models, stats=stats))
    got = resize(apply, graph, merged)(merged, tokens)
    np.testing.assert_allclose(got, apply(models[0], tokens), rtol=1e-4, atol=1e-4)
    table = "params/tokens/embedding"
    assert flatten(merged)[table].shape == (11, 8) and rigid(graph)[graph.axes[table][1].node].endswith(
        "both writes and reads it"
    )
    (hidden,) = (n.name for n in graph.nodes.values() if n.size == 6)
    assert hidden not in rigid(graph) and rigid(graph).keys() >= held(graph).keys()


def test_heads_are_left_alone_if_what_is_inside_is_outside():
    net = networks.network("attention")
    names = list(net.graph.nodes)
    families = [n for n in names if net.graph.nodes[n].index] + [i for n in names for i in net.graph.nodes[n].index]
    for first, last in itertools.combinations_with_replacement(range(len(names)), 2):
        chosen = set(ZipIt(start=names[first], stop=names[last]).nodes(net.graph))
        assert chosen & set(families) in (set(), set(families))
        assert chosen <= set(names[first : last + 1])


def test_one_model_has_identities():
    net = networks.network("mlp")
    (theta,) = ZipIt().init(net.graph, [net.variables])
    assert set(theta) == {"first", "second"}
    for m in theta.values():
        np.testing.assert_array_equal(m.push, np.eye(len(m.push)))
        np.testing.assert_array_equal(m.pull, np.eye(len(m.push)))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"width": 0.0}, "width must be a finite number above 0, got 0.0"),
        ({"width": 1.5}, "width, the share of all units that remains, must be a number from 0 to 1, got 1.5"),
        ({"width": float("nan")}, "must be a number from 0 to 1, got nan"),
        ({"width": "half"}, "must be a number from 0 to 1, got 'half'"),
        ({"alpha": -0.1}, "alpha must be a number from 0 to 1, got -0.1"),
        ({"alpha": None}, "alpha must be a number from 0 to 1, got None"),
        ({"beta": 2.0}, "beta must be a number from 0 to 1, got 2.0"),
        ({"beta": float("nan")}, "beta must be a number from 0 to 1, got nan"),
        ({"beta": True}, "beta must be a number from 0 to 1, got True"),
        ({"start": 3}, "start must be the name of a node or None, got 3"),
        ({"stop": ("first",)}, r"stop must be the name of a node or None, got \('first',\)"),
        ({"matcher": "gready"}, "matcher must be one of 'greedy', 'exact', 'k-means', 'identity', got 'gready'"),
    ],
)
def test_bad_fields_are_named(fields, told):
    with pytest.raises(ValueError, match=told):
        ZipIt(**fields)


@pytest.mark.parametrize(
    ("method", "count", "told"),
    [
        (
            ZipIt(0.01),
            2,
            "width 0.01 leaves 0 of the 16 units of 2 models at node 'first': the greedy matcher needs 7 with beta",
        ),
        (ZipIt(0.25, matcher="exact"), 2, "leaves 4 of the 16 units of 2 models at node 'first': the exact matcher needs 8"),
        (ZipIt(matcher="exact"), 3, "the exact matcher takes two models, got 3"),
        (ZipIt(0.75, matcher="identity"), 2, "the identity matcher keeps the width of one model, 1 / 2: got 0.75"),
        (
            ZipIt(0.01, matcher="k-means"),
            2,
            "leaves 0 of the 16 units of 2 models at node 'first': the k-means matcher needs 1$",
        ),
    ],
)
def test_widths_that_cannot_be_reached_are_named(method, count, told):
    net = networks.network("mlp")
    with pytest.raises(ValueError, match=told):
        align(method, net.graph, [net.variables] * count)


def test_models_of_different_widths_are_refused():
    net, _, wide, graph = widened("mlp")
    with pytest.raises(ValueError, match="models of one width: node 'first' has 8 units in model 0 and 16 in model 1"):
        align(ZipIt(), [net.graph, graph], [net.variables, wide])


def test_moments_with_nan_are_refused():
    net = networks.network("mlp")
    stats = stats_of("mlp", [net.variables] * 2)
    broken = stats[JointMoments]["second"]
    broken = {**stats[JointMoments], "second": broken._replace(mean=broken.mean.at[0].set(jnp.nan))}
    with pytest.raises(ValueError, match="ZipIt got non-finite moments of node 'second'"):
        align(ZipIt(), net.graph, [net.variables] * 2, stats={JointMoments: broken})
    ZipIt(stop="first").init(net.graph, [net.variables] * 2, stats={JointMoments: broken})
