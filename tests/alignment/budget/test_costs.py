"""What networks cost: against XLA's own analysis, against parameters counted, and the published multiplier."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import PartialMatching, align, resize, trace
from alignment.budget.costs import Costs, costs, multiplier
from alignment.graph import Graph, path_name
from alignment.labels import new_size
from npmerge.models.build import Network, abstract, build, example
from npmerge.models.mlp import Mlp
from npmerge.models.resnet_cifar import ResNetCifar
from tests.alignment.test_zoo import network

CONFIGS = {
    "mlp": Mlp(inputs=5, hidden=(7, 6), classes=3),
    "resnet A": ResNetCifar(blocks=1, width=16, side=16),
    "resnet B": ResNetCifar(blocks=1, width=16, side=16, shortcut="B"),
}


@functools.cache
def measured(name: str) -> tuple[Network, Graph, Costs]:
    config = CONFIGS[name]
    net = abstract(config)
    graph = trace(net.apply, net.variables, example(config))
    return net, graph, costs(net.apply, graph, net.variables, example(config))


def shapes(graph: Graph, variables, widths):
    def resized(path, x):
        return jax.ShapeDtypeStruct(tuple(new_size(label, widths) for label in graph.axes[path_name(path)]), x.dtype)

    return jax.tree_util.tree_map_with_path(resized, variables)


def wider(graph: Graph) -> list[dict[str, int]]:
    nodes = list(graph.nodes.values())
    return [{}, {n.name: 3 * n.size // 2 for n in nodes}, {n.name: 2 * n.size + 2 * (k % 3) for k, n in enumerate(nodes)}]


def by_xla(f, *args) -> float:
    return jax.jit(f).lower(*args).cost_analysis()["flops"]


@pytest.mark.parametrize("name", ["resnet A", "resnet B"])
def test_operations_are_those_xla_counts_to_a_few_per_cent(name):
    net, graph, found = measured(name)
    for widths in wider(graph):
        variables = shapes(graph, net.variables, widths)
        counted = by_xla(resize(net.apply, graph, variables, widths), variables, example(CONFIGS[name]))
        assert 0.96 * counted < found.flops(widths) < counted  # XLA counts what is elementwise too


def test_the_compiled_network_costs_what_it_should():
    net, _, found = measured("resnet B")
    compiled = jax.jit(net.apply).lower(net.variables, example(CONFIGS["resnet B"])).compile()
    assert found.flops() == pytest.approx(compiled.cost_analysis()["flops"], rel=0.04)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_the_elements_of_the_leaves(name):
    net, graph, found = measured(name)
    for widths in wider(graph):
        params = shapes(graph, net.variables, widths)["params"]
        assert found.parameters(widths) == sum(x.size for x in jax.tree.leaves(params))


def test_a_perceptron_by_hand():
    _, graph, found = measured("mlp")
    assert found.flops() == 2 * 2 * (5 * 7 + 7 * 6 + 6 * 3)  # a batch of two
    assert found.parameters() == (5 + 1) * 7 + (7 + 1) * 6 + (6 + 1) * 3
    first, second = graph.nodes
    assert found.flops({first: 10}) == 2 * 2 * (5 * 10 + 10 * 6 + 6 * 3)
    assert dict(found.operations.terms) == {(first,): 20.0, (first, second): 4.0, (second,): 12.0}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "VALID"},
        {"window_strides": (2, 2)},
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 2), "padding": ((1, 1), (1, 1))},
        {"window_strides": (2, 3), "padding": ((2, 1), (0, 3))},
        {"feature_group_count": 2},
    ],
    ids=str,
)
def test_every_kind_of_convolution_is_counted_as_xla_does(options):
    groups = options.get("feature_group_count", 1)
    kernel = jnp.ones((3, 2, 6 // groups, 8))

    def apply(v, x):
        given = {"window_strides": (1, 1), "padding": "SAME", **options}
        return jax.lax.conv_general_dilated(x, v["kernel"], **given, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x = jnp.ones((2, 9, 7, 6))
    graph = trace(apply, {"kernel": kernel}, x)
    assert costs(apply, graph, {"kernel": kernel}, x).flops() == by_xla(apply, {"kernel": kernel}, x)


@pytest.mark.parametrize("name", ["attention_by_einsum", "scan_over_layers", "densenet", "fused_by_split", "flatten_nchw"])
def test_resized_networks_of_the_zoo_cost_the_polynomial(name):
    """The contractions of the jaxpr of the resized function, counted one by one."""
    net = network(name)
    found = costs(net.apply, net.graph, net.variables, net.inputs)
    widths = {n.name: 2 * n.size for n in net.graph.nodes.values()}
    variables = shapes(net.graph, net.variables, widths)
    larger = resize(net.apply, net.graph, variables, widths)
    again = trace(larger, variables, net.inputs)
    assert costs(larger, again, variables, net.inputs).flops() == pytest.approx(found.flops(widths))
    assert found.flops(widths) > 1.5 * found.flops()


def test_loops_count_every_step():
    net = network("scan_over_layers")
    found = costs(net.apply, net.graph, net.variables, net.inputs)
    unrolled = costs_of_steps(net)
    assert found.flops() == unrolled


def costs_of_steps(net) -> float:
    """The operations of every dot product in the jaxpr, times the lengths of the scans around it."""

    def count(jaxpr) -> float:
        operations = 0.0
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                (contracted, _), _ = eqn.params["dimension_numbers"]
                left = eqn.invars[0].aval.shape
                operations += 2 * np.prod(eqn.outvars[0].aval.shape) * np.prod([left[d] for d in contracted])
            steps = eqn.params.get("length", 1)
            inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
            operations += steps * count(getattr(inner, "jaxpr", inner)) if inner is not None else 0
        return float(operations)

    return count(jax.make_jaxpr(net.apply)(net.variables, net.inputs).jaxpr)


def test_the_published_multiplier():
    assert [multiplier(r, r) for r in (0, 0.5, 1)] == [1, 1.75, 2]
    assert [multiplier(r) for r in (0, 0.5, 1)] == [1, 1.5, 2]
    for r_in, r_out in [(0.2, 0.9), (0.0, 1.0), (0.7, 0.7)]:
        assert multiplier(r_in, r_out) == pytest.approx((1 + r_in) * (1 + r_out) - 2 * r_in * r_out)
        for n in (2, 3, 5):
            (mi, mo), (si, so) = (1 - r_in, 1 - r_out), (r_in, r_out)
            assert multiplier(r_in, r_out, models=n) == pytest.approx(mo * mi + n * (mo * si + so * mi + so * si))
            assert multiplier(r_in, models=n) == pytest.approx(mi + n * si)


@pytest.mark.parametrize("models", [2, 3])
def test_a_partially_merged_network_costs_its_blocks(models):
    _, graph, found = measured("mlp")
    (a, b), (ra, rb) = graph.nodes, (3 / 7, 4 / 6)
    layers = 5 * 7 * multiplier(ra, models=models) + 42 * multiplier(ra, rb, models=models) + 18 * multiplier(rb, models=models)
    assert found.multiple({a: ra, b: rb}, models=models) == pytest.approx(layers / (35 + 42 + 18))
    assert found.multiple({}, models=models) == 1
    assert found.multiple({a: 1, b: 1}, models=models) == models
    dense = found.flops({a: 4 + models * 3, b: 2 + models * 4}) / found.flops()
    assert found.multiple({a: ra, b: rb}, models=models) < dense


def test_structural_zeros_are_what_does_not_count():
    """The elements of the merged kernel that are not zero, counted in the weights themselves."""
    _, graph, found = measured("mlp")
    models = [jax.tree.map(lambda x: x + 0.1, build(CONFIGS["mlp"], seed=k).variables) for k in range(3)]
    a, b = graph.nodes
    ratios = {a: 3 / 7, b: 4 / 6}
    moved = align(PartialMatching(ratio=ratios), graph, models)
    merged = jax.tree.map(lambda *x: sum(x[1:], x[0]), *moved)
    filled = sum(int(jnp.count_nonzero(x)) for x in jax.tree.leaves(merged["params"]))
    assert found.multiple(ratios, models=3, by="parameters") * found.parameters() == pytest.approx(filled)


def test_mistakes_are_named():
    _, graph, found = measured("mlp")
    with pytest.raises(ValueError, match="unknown node 'params/layer/0': the nearest is 'params/layers/0', expected one of"):
        found.flops({"params/layer/0": 3})
    first, *_ = graph.nodes
    for count in (found.flops, found.parameters):
        for width in (-3, 0, 2.5, True):
            with pytest.raises(ValueError, match=f"the width of '{first}' must be an integer of 1 or more, got {width}"):
                count({first: width})
    for ratio in (-0.1, 1.5, float("nan"), "half", None):
        with pytest.raises(ValueError, match=f"the ratio of {first!r} must be a number from 0 to 1, got {ratio!r}"):
            found.multiple({first: ratio})
        with pytest.raises(ValueError, match=f"a ratio must be a number from 0 to 1, got {ratio!r}"):
            multiplier(0.5, ratio)
    for models in (0, 1.5, True):
        for count in (lambda n: found.multiple({}, models=n), lambda n: multiplier(0.5, models=n)):
            with pytest.raises(ValueError, match=f"models must be an integer of 1 or more, got {models}"):
                count(models)
    one, x = {"a": jnp.ones((4, 6)), "c": jnp.ones((6, 5)), "b": jnp.ones((5, 3))}, jnp.ones((2, 4))
    two = trace(lambda v, x: jnp.tanh(jnp.tanh(x @ v["a"]) @ v["c"]) @ v["b"], one, x)
    with pytest.raises(ValueError, match="the graph is of another function: only one of them has the node 'c'"):
        costs(lambda v, x: jnp.cumsum(jnp.tanh(x @ v["a"]) @ v["c"], 1) @ v["b"], two, one, x)
    with pytest.raises(ValueError, match="by must be one of 'flops', 'parameters', got 'time'"):
        found.polynomial("time")
    other = measured("resnet A")
    with pytest.raises(ValueError, match="variables do not fit the graph"):
        costs(other[0].apply, graph, other[0].variables, example(CONFIGS["resnet A"]))
