"""Permutations from weights alone."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import WeightMatching
from alignment.permutations import permuted
from tests.alignment import networks


def objective(a, b, exclude="batch_stats"):
    """The inner product of two sets of weights."""
    a, b = networks.flatten(a), networks.flatten(b)
    return sum(float(np.sum(np.asarray(a[p], np.float64) * np.asarray(b[p], np.float64))) for p in a if exclude not in p)


def by_sweeps(graph, a, b, sweeps, key=None):
    """The objective after each number of sweeps, from none."""
    values = [objective(a, b)]
    for n in range(sweeps):
        theta = WeightMatching(max_sweeps=n + 1).init(graph, [a, b], key=key)
        values.append(objective(a, moved_by(graph, theta[1], b)))
    return values


def moved_by(graph, orders, variables):
    """Variables with their nodes in these orders, on the host."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: permuted(graph, alignment.graph.path_name(path), np.asarray(x), orders), variables
    )


PLANTED = ["mlp", "resnet", "option_a", "vgg", "concatenation", "nnx_state"]
HEADS = ["towers", "attention", "fused_attention", "grouped_queries"]


@pytest.mark.parametrize("name", [*PLANTED, *HEADS])
@pytest.mark.parametrize("key", [None, 3])
def test_a_planted_permutation_is_recovered(name, key):
    """Of units, of heads, of units inside the heads, of queries inside their groups, of all of them in every layer."""
    net = networks.network(name)
    moved, index = networks.shuffle(net.graph, net.variables, 5)
    key = None if key is None else jax.random.key(key)
    theta = WeightMatching().init(net.graph, [net.variables, moved], key=key)
    chex.assert_trees_all_equal(theta[1], networks.undone(net.graph, index))
    chex.assert_trees_all_equal(moved_by(net.graph, theta[1], moved), jax.tree.map(np.asarray, net.variables))


@pytest.mark.parametrize("name", ["option_a", "grouped_queries"])
def test_align_applies_what_init_found(name):
    net = networks.network(name)
    moved, _ = networks.shuffle(net.graph, net.variables, 5)
    for aligned in alignment.align(WeightMatching(), net.graph, [net.variables, moved]):
        chex.assert_trees_all_equal(aligned, net.variables)


@pytest.mark.parametrize("name", ["mlp", "option_a", "towers", "fused_attention", "grouped_queries"])
def test_the_objective_never_falls(name):
    net = networks.network(name)
    for seed in range(3):
        values = by_sweeps(net.graph, net.another(2 * seed + 1), net.another(2 * seed + 2), 4)
        assert all(after >= before - 1e-5 for before, after in itertools.pairwise(values)), values
        assert values[1] > values[0]


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_recovered_among_noise(name):
    """What a copy of a network looks like after some training of its own."""
    net = networks.network(name)
    noisy = jax.tree.map(lambda x: np.asarray(x) + 0.1 * np.asarray(networks.data(*x.shape, seed=3)), net.variables)
    moved, index = networks.shuffle(net.graph, noisy, 6)
    theta = WeightMatching().init(net.graph, [net.variables, moved])
    chex.assert_trees_all_equal(theta[1], networks.undone(net.graph, index))


def test_heads_with_units_inside_equal_brute_force_and_need_one_sweep():
    """Two levels of assignment are the global optimum over all orders of the heads and of the units of each."""

    def apply(v, x):
        h = jnp.tanh(jnp.einsum("bi,ihd->bhd", x, v["a"]))
        return jnp.einsum("bhd,hdo->bo", h, v["b"])

    shapes = {"a": (4, 3, 2), "b": (3, 2, 3)}
    graph = alignment.trace(apply, {name: networks.data(*s) for name, s in shapes.items()}, networks.data(2, 4))
    assert networks.table(graph) == {"a#1": (3, "permutation"), "a#2": (2, "permutation", {"a#1": 3})}
    inside = list(itertools.product(itertools.permutations(range(2)), repeat=3))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        ours, theirs = ({name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()} for _ in range(2))
        every = []
        for heads, units in itertools.product(itertools.permutations(range(3)), inside):
            a = np.stack([theirs["a"][:, h, list(units[h])] for h in heads], 1)
            b = np.stack([theirs["b"][h, list(units[h])] for h in heads])
            every.append(objective(ours, {"a": a, "b": b}))
        theta = WeightMatching(max_sweeps=1).init(graph, [ours, theirs])
        assert objective(ours, moved_by(graph, theta[1], theirs)) == pytest.approx(max(every), rel=1e-5)
        chex.assert_trees_all_equal(WeightMatching().init(graph, [ours, theirs]), theta)


def recurrent(v, x):
    h = jnp.tanh(x @ v["u"])
    return jnp.tanh(h @ v["w"] + x @ v["u"]) @ v["o"]


def test_the_objective_never_falls_where_a_tensor_carries_a_node_twice():
    """<A, P B P^T> is quadratic in P: maximising it with the other axis held may lower it."""
    shapes = {"u": (4, 5), "w": (5, 5), "o": (5, 3)}
    start = networks.fill({name: networks.Shape(shape, jnp.float32) for name, shape in shapes.items()}, 0)
    graph = alignment.trace(recurrent, start, networks.data(2, 4))
    for seed in range(10):
        values = by_sweeps(graph, networks.fill(start, 2 * seed), networks.fill(start, 2 * seed + 1), 4)
        assert all(after >= before - 1e-5 for before, after in itertools.pairwise(values)), (seed, values)


def test_a_tensor_that_carries_a_node_as_a_product_with_itself():
    """Bilinear pooling: unit i stands in row i and in column i of the flattened outer product."""

    def apply(v, x):
        h = jnp.tanh(x @ v["a"])
        outer = h[:, :, None] * h[:, None, :]
        return outer.reshape(outer.shape[0], -1) @ v["b"]

    start = {"a": networks.data(4, 5), "b": networks.data(25, 3)}
    graph = alignment.trace(apply, start, networks.data(2, 4))
    moved, _ = networks.shuffle(graph, start, 2)
    chex.assert_trees_all_equal(alignment.align(WeightMatching(), graph, [start, moved])[1], start)


def test_one_hidden_layer_equals_brute_force_and_needs_one_sweep():
    """A single node is one linear assignment, so the optimum is global."""

    def apply(v, x):
        return jax.nn.relu(x @ v["a"]) @ v["b"]

    graph = alignment.trace(apply, {"a": networks.data(3, 5), "b": networks.data(5, 2)}, networks.data(2, 3))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        a, b = (
            {"a": jnp.float32(rng.standard_normal((3, 5))), "b": jnp.float32(rng.standard_normal((5, 2)))} for _ in range(2)
        )
        every = [objective(a, {"a": b["a"][:, p], "b": b["b"][p, :]}) for p in map(np.array, itertools.permutations(range(5)))]
        once = alignment.align(WeightMatching(max_sweeps=1), graph, [a, b])[1]
        assert objective(a, once) == pytest.approx(max(every), rel=1e-5)
        chex.assert_trees_all_equal(alignment.align(WeightMatching(), graph, [a, b])[1], once)


def test_deterministic_for_a_key():
    net = networks.network("resnet")
    models = [net.variables, net.another(1), net.another(2)]
    for key in (None, jax.random.key(0)):
        chex.assert_trees_all_equal(*(WeightMatching().init(net.graph, models, key=key) for _ in range(2)))


def test_the_key_changes_the_order_of_the_nodes():
    net = networks.network("resnet")
    models = [net.variables, net.another(1)]
    thetas = [WeightMatching().init(net.graph, models, key=jax.random.key(k)) for k in range(8)]
    found = [objective(models[0], moved_by(net.graph, theta[1], models[1])) for theta in thetas]
    assert len(set(np.round(found, 4))) > 1


def test_running_statistics_do_not_vote():
    """Statistics of enormous size, otherwise arranged, must not change the permutation."""
    net = networks.network("resnet")
    moved, index = networks.shuffle(net.graph, net.variables, 5)
    noise = jax.tree.map(lambda x: x + 1e3 * networks.data(*x.shape, seed=9), moved["batch_stats"])
    models = [{**net.variables, "batch_stats": noise}, {**moved, "batch_stats": noise}]
    theta = WeightMatching().init(net.graph, models)
    chex.assert_trees_all_equal(theta[1], {node: np.argsort(i) for node, i in index.items()})


def test_integer_leaves_take_no_part():
    def apply(v, x):
        return jnp.tanh(x @ v["a"]) @ v["b"]

    start = {"a": networks.data(4, 5), "b": networks.data(5, 3), "steps": jnp.array(7)}
    graph = alignment.trace(apply, start, networks.data(2, 4))
    moved, _ = networks.shuffle(graph, start, 2)
    aligned = alignment.align(WeightMatching(), graph, [start, {**moved, "steps": jnp.array(9)}])[1]
    chex.assert_trees_all_equal(aligned, {**start, "steps": jnp.array(9)})


def test_half_precision_weights():
    net = networks.network("mlp")
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), net.variables)
    moved, _ = networks.shuffle(net.graph, halves, 5)
    chex.assert_trees_all_equal(alignment.align(WeightMatching(), net.graph, [halves, moved])[1], halves)


# -------------------------------------------------------------------------------------------------------------- align


def test_align_names_the_model_and_the_leaf_that_is_not_finite():
    net = networks.network("mlp")
    bad = jax.tree.map(lambda x: x, net.another(1))
    bad["second"]["kernel"] = bad["second"]["kernel"].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="model 1 has 1 non-finite values of 56 in 'second/kernel'"):
        alignment.align(WeightMatching(), net.graph, [net.variables, bad])


def test_align_of_nothing_and_of_one():
    net = networks.network("mlp")
    with pytest.raises(ValueError, match="at least one model"):
        alignment.align(WeightMatching(), net.graph, [])
    (same,) = alignment.align(WeightMatching(), net.graph, [net.variables])
    chex.assert_trees_all_equal(same, net.variables)
