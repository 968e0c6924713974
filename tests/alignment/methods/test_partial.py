"""Partial matching: the block table, and its two ends, the permuted average and the ensemble."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import ActivationMatching, PartialMatching, Procrustes, WeightMatching, align, resize, trace, transport
from alignment.activations.moments import NodeMoments
from alignment.graph import Graph
from alignment.maps import permutation
from alignment.methods.partial import merged_units
from alignment.separability import held, rigid, separable
from npmerge import collect
from npmerge.models.build import Network, build, example
from npmerge.models.mlp import Mlp
from npmerge.models.resnet_cifar import ResNetCifar
from tests.alignment.test_zoo import network

CONFIGS = {
    "mlp": Mlp(inputs=5, hidden=(7, 6), classes=3),
    "resnet A": ResNetCifar(blocks=1, width=4, side=8, classes=3),
    "resnet B": ResNetCifar(blocks=1, width=4, side=8, classes=3, shortcut="B"),
}
architectures = pytest.mark.parametrize("name", CONFIGS)


@functools.cache
def traced(name: str) -> tuple[Network, Graph]:
    net = build(CONFIGS[name])
    net = net._replace(apply=jax.jit(net.apply))
    return net, trace(net.apply, net.variables, example(CONFIGS[name]))


def trained(name: str, seed: int):
    """Variables in which nothing is zero or one, with the running statistics of a network that has seen data."""
    rng = np.random.default_rng(seed)

    def drawn(path, x):
        positive = jax.tree_util.keystr(path, simple=True, separator="/").endswith(("var", "scale"))
        values = rng.uniform(0.5, 1.5, x.shape) if positive else rng.standard_normal(x.shape) / np.sqrt(max(x[..., 0].size, 1))
        return jnp.asarray(values, x.dtype)

    return jax.tree_util.tree_map_with_path(drawn, traced(name)[0].variables)


def images(name: str, batch: int = 4):
    return jax.random.normal(jax.random.key(7), (batch, *CONFIGS[name].input_shape))


def mean(trees):
    return jax.tree.map(lambda *x: sum(map(np.asarray, x)) / len(x), *trees)


def merge(alignment: PartialMatching, name: str, models: list, stats=None):
    """The merged network, as a function of inputs, and its variables."""
    net, graph = traced(name)
    merged = mean(align(alignment, graph, models, stats=stats))
    widths = alignment.widths(graph, len(models))
    run = jax.jit(resize(net.apply, graph, merged, widths))
    return functools.partial(run, merged), merged


@architectures
@pytest.mark.parametrize("count", [2, 3])
def test_nothing_separate_is_the_permuted_average(name, count):
    graph = traced(name)[1]
    models = [trained(name, k) for k in range(count)]
    merged = mean(align(PartialMatching(ratio=0.0), graph, models))
    chex.assert_trees_all_equal(merged, mean(align(WeightMatching(), graph, models)))


@pytest.mark.parametrize(("name", "count"), [("mlp", 2), ("mlp", 3), ("resnet A", 3), ("resnet B", 2), ("resnet B", 3)])
def test_all_separate_is_the_mean_of_the_outputs(name, count):
    net, graph = traced(name)
    models = [trained(name, k) for k in range(count)]
    run, _ = merge(PartialMatching(ratio=1.0), name, models)
    assert not held(graph)
    x = images(name)
    expected = mean([net.apply(m, x) for m in models])
    np.testing.assert_allclose(run(x), expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))
    spread = jnp.abs(net.apply(models[0], x) - net.apply(models[1], x)).max()
    assert float(spread) > 0.1 * float(jnp.abs(expected).max())


def test_activations_may_say_which_units_belong_together():
    net, graph = traced("mlp")
    models, x = [trained("mlp", k) for k in range(3)], images("mlp", 64)
    stats = collect(net.apply, graph, models, [(x, None)], [NodeMoments])
    _, merged = merge(PartialMatching(ActivationMatching(), 0.0), "mlp", models, stats)
    chex.assert_trees_all_equal(merged, mean(align(ActivationMatching(), graph, models, stats=stats)))
    run, _ = merge(PartialMatching(ActivationMatching(), 1.0), "mlp", models, stats)
    np.testing.assert_allclose(run(x), mean([net.apply(m, x) for m in models]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "ratio"), [("mlp", 0.3), ("mlp", 0.75), ("resnet A", 0.3), ("resnet B", 0.75)])
@pytest.mark.parametrize("mixed", [False, True])
def test_identical_models_stay_the_model_at_any_ratio(name, ratio, mixed):
    net, graph = traced(name)
    by_node = tuple((n, (ratio, 0.0, 1.0)[k % 3]) for k, n in enumerate(graph.nodes))
    run, _ = merge(PartialMatching(ratio=by_node if mixed else ratio), name, [trained(name, 0)] * 3)
    expected = net.apply(trained(name, 0), images(name))
    np.testing.assert_allclose(run(images(name)), expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()))


def test_permuted_copies_stay_the_model_at_any_ratio():
    net, graph = traced("mlp")
    first = trained("mlp", 0)
    rng = np.random.default_rng(0)
    other = transport(graph, {n.name: permutation(rng.permutation(n.size)) for n in graph.nodes.values()}, first)
    run, _ = merge(PartialMatching(ratio=0.4), "mlp", [first, other])
    np.testing.assert_allclose(run(images("mlp")), net.apply(first, images("mlp")), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_every_block_is_the_one_of_the_table(count):
    _, graph = traced("mlp")
    models = [trained("mlp", k) for k in range(count)]
    alignment = PartialMatching(ratio=(("params/layers/0", 0.43), ("params/layers/1", 0.5)))
    merged = mean(align(alignment, graph, models))["params"]["layers"]
    k_in, k_out, n_in, n_out = 4, 3, 7, 6
    assert alignment.merged(graph) == {"params/layers/0": k_in, "params/layers/1": k_out}
    orders = WeightMatching().init(graph, models)
    theta = alignment.init(graph, models)
    permuted = []
    for j, model in enumerate(models):  # every model in the order [merged | its own separate units]
        own = {}
        for name, k in alignment.merged(graph).items():
            n = graph.nodes[name].size
            rows = [*range(k), *range(k + j * (n - k), k + (j + 1) * (n - k))]
            own[name] = np.argmax(np.asarray(theta[j][name].push)[rows], -1)
            assert sorted(own[name]) == list(range(n))
        if j == 0:
            reference = own
        assert all((own[n] == orders[j][n][reference[n]]).all() for n in own)  # partners stand at the same places
        permuted.append(transport(graph, {n: permutation(i) for n, i in own.items()}, model)["params"]["layers"])
    w, m = [p[1]["kernel"] for p in permuted], count
    got = merged[1]["kernel"]
    in_of = [slice(0, k_in), *(slice(k_in + j * (n_in - k_in), k_in + (j + 1) * (n_in - k_in)) for j in range(m))]
    out_of = [slice(0, k_out), *(slice(k_out + j * (n_out - k_out), k_out + (j + 1) * (n_out - k_out)) for j in range(m))]
    np.testing.assert_allclose(got[in_of[0], out_of[0]], sum(x[:k_in, :k_out] for x in w) / m, rtol=1e-6)
    for j in range(m):
        np.testing.assert_allclose(got[in_of[j + 1], out_of[0]], w[j][k_in:, :k_out] / m, rtol=1e-6)
        np.testing.assert_allclose(got[in_of[0], out_of[j + 1]], w[j][:k_in, k_out:], rtol=1e-6)
        np.testing.assert_allclose(got[in_of[j + 1], out_of[j + 1]], w[j][k_in:, k_out:], rtol=1e-6)
        for other in set(range(m)) - {j}:
            assert not np.any(got[in_of[other + 1], out_of[j + 1]])
        np.testing.assert_allclose(merged[1]["bias"][out_of[j + 1]], permuted[j][1]["bias"][k_out:], rtol=1e-6)
        np.testing.assert_allclose(merged[2]["kernel"][out_of[j + 1]], permuted[j][2]["kernel"][k_out:] / m, rtol=1e-6)
        np.testing.assert_allclose(merged[0]["kernel"][:, in_of[j + 1]], permuted[j][0]["kernel"][:, k_in:], rtol=1e-6)
    np.testing.assert_allclose(merged[1]["bias"][:k_out], mean([p[1]["bias"][:k_out] for p in permuted]), rtol=1e-6)
    np.testing.assert_allclose(merged[2]["bias"], mean([p[2]["bias"] for p in permuted]), rtol=1e-6)


def test_the_units_that_agree_best_are_merged():
    """Unit 2 of the second model points elsewhere; those that are copies are merged."""
    _, graph = traced("mlp")
    first = trained("mlp", 0)
    second = jax.tree.map(np.array, first)
    second["params"]["layers"][0]["kernel"][:, [2, 5]] = -second["params"]["layers"][0]["kernel"][:, [2, 5]]
    second["params"]["layers"][1]["kernel"][[2, 5]] *= 0.1
    models = [first, jax.tree.map(jnp.asarray, second)]
    batch = (images("mlp", 256), None)
    stats = collect(traced("mlp")[0].apply, graph, models, [batch], [NodeMoments])
    for matching, given in ((WeightMatching(), None), (ActivationMatching(), stats)):
        theta = PartialMatching(matching, 2 / 7).init(graph, models, stats=given)
        push = theta[0]["params/layers/0"].push
        assert np.argmax(push, -1)[:5].tolist() == [0, 1, 3, 4, 6]
        assert np.argmax(push, -1)[5:7].tolist() == [2, 5]
        assert push[5:7].sum() == 4 and not push[7:].any()


def test_ties_go_by_index_and_counts_are_exact():
    _, graph = traced("mlp")
    theta = PartialMatching(ratio=0.5).init(graph, [trained("mlp", 0)] * 2)
    assert np.argmax(theta[1]["params/layers/1"].push, -1)[:3].tolist() == [0, 1, 2]
    assert [merged_units(7, r) for r in (0.0, 2 / 7, 0.5, 1.0)] == [7, 5, 4, 0]
    assert all(merged_units(n, s / n) == n - s for n in range(1, 60) for s in range(n + 1))


def test_one_model_comes_back_as_it_is():
    _, graph = traced("mlp")
    (alone,) = align(PartialMatching(ActivationMatching(), 0.5), graph, [trained("mlp", 0)])
    chex.assert_trees_all_equal(alone, trained("mlp", 0))


def test_values_hash_whatever_the_ratio_is_given_as():
    by_name = PartialMatching(ratio={"b": 0.5, "a": 1})
    assert by_name == PartialMatching(ratio=(("a", 1.0), ("b", 0.5)))
    assert hash(by_name) == hash(PartialMatching(ratio=(("a", 1.0), ("b", 0.5))))
    assert PartialMatching(ActivationMatching()).needs == (NodeMoments,) and PartialMatching().needs == ()


def test_mistakes_are_named():
    _, graph = traced("mlp")
    for ratio in (-0.1, 1.5, {"layer": 2.0}):
        with pytest.raises(ValueError, match="must be a number from 0 to 1, got"):
            PartialMatching(ratio=ratio)
    for ratio in (True, None, "half", float("nan"), {"layer": None}, (("layer", "half"),)):
        with pytest.raises(ValueError, match="must be a number from 0 to 1, got"):
            PartialMatching(ratio=ratio)
    with pytest.raises(ValueError, match="ratio names 'a' more than once"):
        PartialMatching(ratio=(("a", 0.5), ("b", 0.5), ("a", 1.0)))
    with pytest.raises(ValueError, match="or one by node as a mapping or as pairs"):
        PartialMatching(ratio=("a", 0.5))
    with pytest.raises(ValueError, match="starts from an alignment by permutations, got Procrustes"):
        PartialMatching(Procrustes())
    with pytest.raises(ValueError, match=r"unknown node 'layer': the nearest is .*can change width are params/layers/0"):
        align(PartialMatching(ratio={"layer": 0.5}), graph, [trained("mlp", 0)] * 2)
    wide = build(Mlp(inputs=5, hidden=(9, 6), classes=3))
    graphs = [graph, trace(wide.apply, wide.variables, example(CONFIGS["mlp"]))]
    with pytest.raises(ValueError, match=r"needs models of one width: .* has 7 units in model 0 and 9 in model 1"):
        align(PartialMatching(), graphs, [trained("mlp", 0), wide.variables])


def merged_member(name: str, ratio, shuffles: int = 1):
    """The merged network of one of the zoo with others whose numbers stand in another order, and the mean of their outputs."""
    net = network(name)
    rng = np.random.default_rng(1)

    def drawn(x):
        return (
            jnp.asarray(rng.permutation(np.ravel(x)).reshape(x.shape), x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        )

    models = [net.variables, *(jax.tree.map(drawn, net.variables) for _ in range(shuffles))]
    alignment = PartialMatching(ratio=ratio)
    merged = mean(align(alignment, net.graph, models))
    run = resize(net.apply, net.graph, merged, alignment.widths(net.graph, len(models)))
    return run(merged, net.inputs), mean([net.apply(m, net.inputs) for m in models])


EXACT = ["densenet", "unet", "squeeze_excite", "flatten_nchw", "group_norm", "average_pooling", "mobilenet_block", "glu"]


@pytest.mark.parametrize("name", EXACT)
def test_all_separate_is_the_ensemble_of_every_kind_of_layer(name):
    got, expected = merged_member(name, 1.0)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()))


def test_layer_norm_over_separate_units_is_approximate():
    got, expected = merged_member("layer_norm_with_scale", 1.0)
    assert bool(jnp.isfinite(got).all())
    assert float(jnp.abs(got - expected).max()) > 1e-3 * float(jnp.abs(expected).max())


def test_heads_are_separate_as_a_whole():
    """Attention without norms around it: the ensemble of the heads of both networks is exact."""
    rng = np.random.default_rng(0)
    shapes = {"query": (5, 3, 4), "key": (5, 3, 4), "value": (5, 3, 2), "out": (3, 2, 6)}

    def apply(v, x):
        q, k, value = (jnp.einsum("btc,chd->bhtd", x, v[name]) for name in ("query", "key", "value"))
        mix = jax.nn.softmax(jnp.einsum("bhtd,bhsd->bhts", q, k), axis=-1)
        return jnp.einsum("bhts,bhsd,hdc->btc", mix, value, v["out"])

    models = [
        {n: jnp.asarray(rng.standard_normal(s).astype(np.float32), np.float32) for n, s in shapes.items()} for _ in range(3)
    ]
    x = jnp.asarray(rng.standard_normal((2, 7, 5)).astype(np.float32), np.float32)
    graph = trace(apply, models[0], x)
    (heads,) = separable(graph)
    assert graph.nodes[heads].size == 3 and set(held(graph)) == set(graph.nodes) - {heads}
    alignment = PartialMatching(ratio=1.0)
    assert alignment.widths(graph, 3) == {n: 9 if n == heads else node.size for n, node in graph.nodes.items()}
    merged = mean(align(alignment, graph, models))
    assert merged["query"].shape == (5, 9, 4)
    got = resize(apply, graph, merged, alignment.widths(graph, 3))(merged, x)
    np.testing.assert_allclose(got, mean([apply(m, x) for m in models]), rtol=1e-4, atol=1e-5)
    same = [models[0]] * 3
    by_activations = PartialMatching(ActivationMatching(), ratio={heads: 1 / 3})
    merged = mean(align(by_activations, graph, same, stats=collect(apply, graph, same, [(x, None)], [NodeMoments])))
    assert merged["query"].shape == (5, 5, 4)
    got = resize(apply, graph, merged, by_activations.widths(graph, 3))(merged, x)
    np.testing.assert_allclose(got, apply(models[0], x), rtol=1e-4, atol=1e-5)
    inside = next(name for name in held(graph))
    with pytest.raises(
        ValueError, match=f"must stay merged, got ratio 0.5: it is inside '{heads}'.*can change width are {heads}"
    ):
        PartialMatching(ratio={inside: 0.5}).ratios(graph)


@pytest.mark.parametrize(
    ("read", "shape", "why"),
    [
        (lambda h, o: h @ o, (6, 2), {}),
        (lambda h, o: h @ o.T, (2, 6), {}),  # the axes are those of the leaf
        (lambda h, o: h @ o.reshape(6, 2), (12,), {"w": "its group is linear"}),  # which of its axes are rows is not known
        (lambda h, o: h @ (2 * o), (6, 2), {"w": "its group is linear"}),  # nor whether a weight is read here at all
        (lambda h, o: jnp.tanh(h).sum(1, keepdims=True) * o, (1, 2), {"w": "no weight reads it"}),
    ],
)
def test_a_node_can_be_separated_where_a_weight_is_known_to_read_it(read, shape, why):
    rng = np.random.default_rng(0)
    variables = {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in (("w", (4, 6)), ("o", shape))}
    graph = trace(lambda v, x: read(x @ v["w"], v["o"]), variables, jnp.zeros((1, 4)))
    assert held(graph) == why


def test_what_has_to_stay_merged_says_why():
    tied, rms, linear = (network(name).graph for name in ("tied_embedding", "rms_norm_without_scale", "average_pooling"))
    assert list(held(tied).values()) == ["'table' both writes and reads it"]
    assert list(held(rms).values()) == ["its group is orthogonal"]
    shared = held(network("normalised_queries_with_scale").graph)
    assert "products of features sum over it" in shared.values()
    product = next(name for name, why in shared.items() if why.startswith("products"))
    assert rigid(network("normalised_queries_with_scale").graph)[product] == shared[product]
    assert rigid(tied) == held(tied) and rigid(rms) == {}
    assert held(linear) == {} and "linear" in {n.group for n in linear.nodes.values()}
    assert set(PartialMatching(ratio=1.0).ratios(tied).values()) == {0.0, 1.0}


def test_steps_of_a_loop_have_units_of_their_own():
    net = network("scan_over_layers")
    got, expected = merged_member("scan_over_layers", 1.0)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()))
    inside = next(n for n in net.graph.nodes.values() if n.copies)
    theta = PartialMatching(ratio=0.5).init(net.graph, [net.variables] * 2)
    k = merged_units(inside.size, 0.5)
    assert theta[0][inside.name].push.shape == (*inside.copies, k + 2 * (inside.size - k), inside.size)
