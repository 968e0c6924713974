"""Positive scaling: planted factors are found, the function stays, the objective never rises."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import alignment
from alignment import ActivationMatching, NodeMoments, Procrustes, Scale, WeightMatching, weight_distance
from alignment.methods.scale import _best_factors
from npmerge import Aligned, Average, CrossEntropy, Learned, PerTensor, Simplex, fit, stack_models, weight_space
from tests.alignment import networks
from tests.alignment.activations.test_moments import collect
from tests.alignment.methods.test_activation_matching import BATCHES


def residual():
    """Convolutions with ReLU on a residual stream, without norms: a positive factor for each channel of the stream."""

    def convolve(kernel, x):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    @jax.jit
    def apply(v, x):
        h = jax.nn.relu(convolve(v["stem"], x))
        for block in v["blocks"]:
            h = jax.nn.relu(h + convolve(block["down"], jax.nn.relu(convolve(block["up"], h))))
        return networks.dense(v["head"], h.mean((1, 2)))

    shapes = {"stem": (3, 3, 3, 5), "blocks": [{"up": (3, 3, 5, n), "down": (3, 3, n, 5)} for n in (6, 7)]}
    shapes = jax.tree.map(lambda s: networks.Shape(s, jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple))
    variables = networks.fill(shapes | {"head": networks.layer(5, 3)}, 0)
    return networks.Network("residual", apply, variables, networks.IMAGES, {})


NETWORKS = {"residual": residual()}


def network(name):
    return NETWORKS.get(name) or networks.network(name)


def planted(graph, variables, seed, spread=2.0):
    """Variables with every copy of every node permuted and scaled by factors in [1/spread, spread]."""
    rng = np.random.default_rng(seed)
    moved = networks.shuffle(graph, variables, seed)[0]
    maps = {}
    for node in graph.nodes.values():
        factors = np.exp(rng.uniform(-np.log(spread), np.log(spread), (*node.copies, node.size)))
        matrix = np.float32(factors[..., None] * np.eye(node.size))
        maps[node.name] = alignment.NodeMap(matrix, np.float32(matrix.swapaxes(-1, -2) / np.square(factors)[..., None, :]))
    return alignment.transport(graph, maps, moved)


@pytest.mark.parametrize("name", ["mlp", "vgg", "residual", "towers"])
def test_planted_factors_and_permutations_are_recovered(name):
    """Dense, convolutional, with a residual stream, with indexed nodes: weights equal, function unchanged."""
    net = network(name)
    other = planted(net.graph, net.variables, 3)
    assert all(node.group in ("scale", "linear") for node in net.graph.nodes.values())
    method = Scale()
    theta = method.init(net.graph, [net.variables, other])
    maps = method.maps(theta, net.graph)
    aligned = alignment.transport(net.graph, maps[1], other)
    chex.assert_trees_all_close(aligned, net.variables, atol=1e-4)
    assert alignment.discrepancy(net.apply, net.graph, maps[1], other, net.inputs) < 1e-5
    unscaled = alignment.align(WeightMatching(), net.graph, [net.variables, other])[1]
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (unscaled, net.variables)), strict=True)) > 0.1


def independent(name):
    net = network(name)
    return net, [net.variables, net.another(1)]


@pytest.mark.parametrize("name", ["mlp", "residual", "towers"])
def test_the_objective_never_rises_in_a_sweep_and_the_function_stays(name):
    net, models = independent(name)
    distances = []
    for sweeps in (0, 1, 2, 100):
        method = Scale(max_sweeps=sweeps)
        theta = method.init(net.graph, models)
        distances.append(float(weight_distance(method, net.graph, theta, models)))
    assert distances[0] == pytest.approx(float(weight_distance(WeightMatching(), net.graph, [
        {n: leaf["order"] for n, leaf in m.items()} for m in theta], models)))  # fmt: skip
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(distances))
    assert distances[1] < 0.99 * distances[0]
    assert alignment.discrepancy(net.apply, net.graph, method.maps(theta, net.graph)[1], models[1], net.inputs) < 1e-5


def test_at_the_end_no_factor_can_be_improved():
    """The gradient with respect to every log-scale is zero."""
    net, models = independent("mlp")
    method = Scale()
    theta = method.init(net.graph, models)

    def loss(scales):
        scaled = {n: leaf | {"log_scale": scales[n]} for n, leaf in theta[1].items()}
        return weight_distance(method, net.graph, [theta[0], scaled], models)

    scales = {n: jnp.asarray(leaf["log_scale"]) for n, leaf in theta[1].items()}
    start = jax.tree.map(jnp.zeros_like, scales)
    gradient = jax.jit(jax.grad(loss))
    first, last = (np.concatenate(jax.tree.leaves(gradient(at))) for at in (start, scales))
    assert np.linalg.norm(last) < 1e-2 * np.linalg.norm(first)


def test_best_factors_are_global_minima():
    """Against a fine grid, for coefficients with one and with two local minima, and with negative inner products."""
    rng = np.random.default_rng(0)
    a, c = rng.uniform(0.1, 3, (2, 300))
    b, d = rng.uniform(-1, 5, (2, 300))
    s = np.exp(np.linspace(-5, 5, 20001))[:, None]
    value = a * s**2 - 2 * b * s + c / s**2 - 2 * d / s
    best = _best_factors(a, b, c, d)
    assert (a * best**2 - 2 * b * best + c / best**2 - 2 * d / best <= value.min(0) + 1e-4).all()
    minima = ((value[1:-1] < value[:-2]) & (value[1:-1] < value[2:])).sum(0)
    assert set(minima) == {1, 2}


def test_a_unit_that_nothing_reads_keeps_its_factor():
    zero, one = np.zeros(2), np.ones(2)
    np.testing.assert_array_equal(_best_factors(zero, zero, one, one), one)
    np.testing.assert_array_equal(_best_factors(one, one, zero, zero), one)


def recurrent(v, x):
    def step(h, z):
        return jax.nn.relu(z @ v["into"] + h @ v["again"]), None

    return jax.lax.scan(step, jnp.zeros((x.shape[1], len(v["out"]))), x)[0] @ v["out"]


def test_a_node_on_both_sides_of_a_tensor_is_found():
    """A recurrent weight couples the factors of its units: each on its own would undo the same entry twice."""
    shapes = {"into": (4, 6), "again": (6, 6), "out": (6, 3)}
    variables = networks.fill({n: networks.Shape(s, jnp.float32) for n, s in shapes.items()}, 0)
    graph = alignment.trace(recurrent, variables, networks.data(5, 8, 4))
    assert [node.group for node in graph.nodes.values()] == ["scale"]
    assert any(len(axes) == 2 for axes in graph.touching(next(iter(graph.nodes))).values())
    variables |= {"again": 20 * variables["again"] * jnp.asarray(np.kron(np.eye(3), [[0, 1], [0, 0]]), jnp.float32)}
    factors = np.float32([2, 0.5, 2, 0.5, 2, 0.5])  # one unit reads another, and both would take the whole step back
    maps = {next(iter(graph.nodes)): alignment.NodeMap(np.diag(factors), np.diag(1 / factors))}
    other = alignment.transport(graph, maps, variables)
    aligned = alignment.align(Scale(max_sweeps=1000), graph, [variables, other])[1]
    chex.assert_trees_all_close(aligned, variables, atol=1e-4)


@pytest.mark.parametrize("seed", [752, 860])
def test_a_step_that_no_halving_makes_better_is_not_taken(seed):
    """Rare: one in three hundred such networks has a unit whose best factor, by itself, lies behind a hill of the objective."""
    shapes, rng = {"into": (2, 3), "again": (3, 3), "out": (3, 2)}, np.random.default_rng(seed)
    models = [
        {n: np.float32(rng.standard_normal(s)) * np.float32(6 if n == "again" else 1) for n, s in shapes.items()} for _ in "ab"
    ]
    graph = alignment.trace(recurrent, models[0], networks.data(5, 8, 2))
    distances = []
    for sweeps in range(6):
        theta = Scale(max_sweeps=sweeps).init(graph, models)
        distances.append(float(weight_distance(Scale(), graph, theta, models)))
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(distances)), distances
    assert distances[-1] < 0.99 * distances[0]


def test_without_relu_there_is_only_the_permutation():
    net = networks.network("tanh_mlp")
    models = [net.variables, net.another(1)]
    theta = Scale().init(net.graph, models)
    assert {frozenset(leaf) for model in theta for leaf in model.values()} == {frozenset({"order"})}
    expected = alignment.align(WeightMatching(), net.graph, models)
    chex.assert_trees_all_equal(alignment.align(Scale(), net.graph, models), expected)


def test_several_models_and_a_start_that_needs_data():
    net = networks.network("mlp")
    models = [net.variables, *(planted(net.graph, net.variables, seed) for seed in (1, 2))]
    method = Scale(ActivationMatching())
    assert method.needs == (NodeMoments,)
    stats = {NodeMoments: collect("mlp", models, BATCHES["mlp"])}
    for aligned in alignment.align(method, net.graph, models, stats=stats):
        chex.assert_trees_all_close(aligned, net.variables, atol=1e-4)


def test_factors_are_learned_by_fit_and_orders_stay():
    net, models = independent("mlp")
    stack, x = stack_models(models), networks.data(32, 5)
    batch = (x, jnp.arange(32) % 3)
    merge = Aligned(Scale(), Learned(Average(), PerTensor(), Simplex()), net.graph)
    theta = merge.init(stack)
    result = fit(theta, weight_space(merge, net.apply, CrossEntropy()), stack, [batch], optax.adam(0.05), steps=10)
    assert result.history.loss[-1] < result.history.loss[0]
    for name, leaf in result.theta["alignment"][1].items():
        np.testing.assert_array_equal(leaf["order"], theta["alignment"][1][name]["order"])
        assert np.abs(leaf["log_scale"] - theta["alignment"][1][name]["log_scale"]).max() > 1e-3
    assert "log_scale" not in result.theta["alignment"][0]["first"]
    maps = Scale().maps(result.theta["alignment"], net.graph)  # still inside the group
    assert alignment.discrepancy(net.apply, net.graph, maps[1], models[1], net.inputs) < 1e-5


def test_a_theta_that_is_not_finite_is_named():
    net = networks.network("mlp")
    theta = Scale().init(net.graph, [net.variables, net.another(1)])
    theta[1]["first"]["log_scale"][2] = np.nan
    with pytest.raises(ValueError, match="theta has 1 non-finite values of 8 in '1/first/log_scale'"):
        Scale().maps(theta, net.graph)


def test_bad_starts_are_refused():
    with pytest.raises(ValueError, match=r"starts from an alignment by permutations .*, got Procrustes\("):
        Scale(Procrustes())
    with pytest.raises(ValueError, match="max_sweeps must be an integer of 0 or more, got -1"):
        Scale(max_sweeps=-1)
