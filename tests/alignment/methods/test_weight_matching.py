"""Permutations from weights alone."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import WeightMatching
from alignment.labels import NodeAxis
from alignment.methods import matching_scores, weight_matching
from alignment.methods.matching_blocks import stacked
from alignment.methods.matching_scores import Descent
from alignment.methods.matching_scores import objective as total
from alignment.permutations import after, blocks, inverse, permuted, unmoved
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


@pytest.mark.parametrize("gated", [False, True])
def test_heads_with_units_inside_equal_brute_force_and_need_one_sweep(gated):
    """Two levels of assignment are the global optimum over all orders of the heads and of the units of each.

    With a gate, a tensor carries the heads without what is inside them.
    """

    def apply(v, x):
        h = jnp.tanh(jnp.einsum("bi,ihd->bhd", x, v["a"]))
        h = h * jnp.broadcast_to(v["gate"][None, :, None], h.shape) if gated else h
        return jnp.einsum("bhd,hdo->bo", h, v["b"])

    shapes = {"a": (4, 3, 2), "b": (3, 2, 3)} | ({"gate": (3,)} if gated else {})
    graph = alignment.trace(apply, {name: networks.data(*s) for name, s in shapes.items()}, networks.data(2, 4))
    assert networks.table(graph) == {"a#1": (3, "permutation"), "a#2": (2, "permutation", {"a#1": 3})}
    inside = list(itertools.product(itertools.permutations(range(2)), repeat=3))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        ours, theirs = ({name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()} for _ in range(2))
        for gates in [ours, theirs] if gated else []:
            gates["gate"] *= 3  # enough to overrule what is inside
        every = []
        for heads, units in itertools.product(itertools.permutations(range(3)), inside):
            a = np.stack([theirs["a"][:, h, list(units[h])] for h in heads], 1)
            b = np.stack([theirs["b"][h, list(units[h])] for h in heads])
            gate = {"gate": theirs["gate"][list(heads)]} if gated else {}
            every.append(objective(ours, {"a": a, "b": b} | gate))
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
        chex.assert_trees_all_equal(*(WeightMatching(restarts=3).init(net.graph, models, key=key) for _ in range(2)))


def test_restarts_take_other_orders_and_keep_the_best():
    net = networks.network("resnet")
    models = [net.variables, net.another(1)]

    def value(restarts, key):
        theta = WeightMatching(restarts=restarts).init(net.graph, models, key=jax.random.key(key))
        return objective(models[0], moved_by(net.graph, theta[1], models[1]))

    once = value(1, 0)
    assert value(2, 0) > once + 1  # of two the second is better
    found = [value(4, k) for k in range(4)]
    assert min(found) >= once - 1e-4
    assert len(set(np.round(found, 4))) > 1
    for k, best in enumerate(found):
        assert best == pytest.approx(max(value(n, k) for n in (1, 2, 3, 4)), rel=1e-6)


def test_weights_are_cut_once_and_left_as_they_are(monkeypatch):
    """Every run begins with them again."""
    net, cuts = networks.network("resnet"), []

    def cut(labels, models):
        found = stacked(labels, models)
        cuts.append((found[1], [[x.copy() for x in model] for model in found[1]]))
        return found

    monkeypatch.setattr(weight_matching, "stacked", cut)
    WeightMatching(restarts=3).init(net.graph, [net.another(k) for k in range(3)])
    ((now, before),) = cuts
    chex.assert_trees_all_equal(now, before)


@pytest.mark.parametrize("field", ["max_sweeps", "restarts"])
def test_at_least_one_sweep_and_one_start(field):
    for bad in (0, 1.5, "3", True):
        with pytest.raises(ValueError, match=f"{field} must be an integer of 1 or more, got {bad!r}"):
            WeightMatching(**{field: bad})


def test_what_is_excluded_is_a_regular_expression():
    with pytest.raises(ValueError, match=r"exclude must be a regular expression, got '\(': "):
        WeightMatching(exclude="(")


# ----------------------------------------------------------------------------------------------------- several models


def of_all_pairs(graph, models, theta):
    """The sum of the inner products of all pairs of models in the orders of theta."""
    moved = [moved_by(graph, orders, v) for orders, v in zip(theta, models, strict=True)]
    return sum(objective(a, b) for a, b in itertools.combinations(moved, 2))


def shuffled_copies(net, count, noise):
    """Copies of a network, each with noise of its own and each in another order but the first."""
    noisy = [
        jax.tree.map(lambda x, k=k: np.asarray(x) + noise * np.asarray(networks.data(*x.shape, seed=k + 3)), net.variables)
        for k in range(count)
    ]
    return [noisy[0], *(networks.shuffle(net.graph, v, k)[0] for k, v in enumerate(noisy[1:]))]


@pytest.mark.parametrize("name", ["mlp", "option_a", "towers", "grouped_queries"])
def test_planted_copies_all_come_back(name):
    net = networks.network(name)
    shuffles = [networks.shuffle(net.graph, net.variables, k) for k in range(3)]
    theta = WeightMatching().init(net.graph, [net.variables, *(moved for moved, _ in shuffles)])
    for orders, (_, index) in zip(theta[1:], shuffles, strict=True):
        chex.assert_trees_all_equal(orders, networks.undone(net.graph, index))


@pytest.mark.parametrize("name", ["resnet", "grouped_queries"])
def test_the_mean_of_the_others_is_no_worse_than_the_reference_alone(name):
    """And better where noise leaves anything to be gained. Model 0 stays where it is."""
    net = networks.network(name)
    models = shuffled_copies(net, 4, 1.0)
    theta = WeightMatching().init(net.graph, models)
    chex.assert_trees_all_equal(theta[0], unmoved(net.graph))
    alone = [theta[0], *(WeightMatching().init(net.graph, [models[0], v])[1] for v in models[1:])]
    assert of_all_pairs(net.graph, models, theta) > of_all_pairs(net.graph, models, alone) + 1e-3


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_each_is_matched_to_those_before_it_first(name):
    """So the turns of strangers end where they end for models that were matched in this way beforehand."""
    net = networks.network(name)
    models = [net.another(k + 1) for k in range(4)]
    first, matched = [unmoved(net.graph)], models[:1]
    for model in models[1:]:
        before = jax.tree.map(lambda *same: sum(same), *matched)
        first.append(WeightMatching().init(net.graph, [before, model])[1])
        matched.append(moved_by(net.graph, first[-1], model))
    then = WeightMatching().init(net.graph, matched)
    theta = WeightMatching().init(net.graph, models)
    chex.assert_trees_all_equal(theta, [after(net.graph, a, b) for a, b in zip(first, then, strict=True)])


def test_no_model_gains_from_another_turn():
    """The outcome is a fixed point: matching any model to the mean of the others leaves it."""
    net = networks.network("resnet")
    models = shuffled_copies(net, 3, 1.0)
    theta = WeightMatching().init(net.graph, models)
    moved = [moved_by(net.graph, orders, v) for orders, v in zip(theta, models, strict=True)]
    for k in range(3):
        others = [v for j, v in enumerate(moved) if j != k]
        mean = jax.tree.map(lambda *xs: sum(xs) / np.float32(2), *others)
        chex.assert_trees_all_equal(WeightMatching().init(net.graph, [mean, moved[k]])[1], unmoved(net.graph))


@pytest.mark.parametrize("large", [matching_scores.LARGE, 8])  # of which no tensor here has fewer numbers
@pytest.mark.parametrize("name", ["resnet", *HEADS])
def test_scores_kept_from_turn_to_turn_are_those_computed_anew(name, large, monkeypatch):
    """After any number of sweeps each node's scores are what a descent that starts from there computes."""
    monkeypatch.setattr(matching_scores, "LARGE", large)
    net = networks.network(name)
    ours, theirs = (flat_blocks(net.graph, net.another(k)) for k in (1, 2))
    labels, ours, theirs = ours[0], ours[1], theirs[1]
    descent = Descent(net.graph, labels, ours, theirs)
    for _ in range(3):
        before = total(ours, descent.theirs)
        descent.sweep(net.graph.nodes)
        assert total(ours, descent.theirs) >= before - 1e-5
        fresh = Descent(net.graph, labels, ours, descent.theirs)
        for node in net.graph.nodes.values():
            np.testing.assert_allclose(descent.scores(node), fresh.scores(node), rtol=1e-4, atol=1e-4)


def test_another_target_is_scored_anew_where_it_differs():
    net = networks.network("resnet")
    (labels, ours), (_, theirs) = (flat_blocks(net.graph, net.another(k)) for k in (1, 2))
    descent = Descent(net.graph, labels, ours, theirs)
    while descent.sweep(net.graph.nodes):
        pass
    moved = descent.moved_blocks()
    assert moved == {k for k, (a, b) in enumerate(zip(theirs, descent.theirs, strict=True)) if not np.array_equal(a, b)}
    assert descent.moved_blocks() == set()
    changed = [x if k else 3 * x[..., ::-1].copy() for k, x in enumerate(ours)]
    descent.retarget(0, changed[0])
    fresh = Descent(net.graph, labels, changed, descent.theirs)
    for node in net.graph.nodes.values():
        np.testing.assert_allclose(descent.scores(node), fresh.scores(node), rtol=1e-4, atol=1e-4)


def test_blocks_that_carry_the_same_nodes_are_one():
    net = networks.network("resnet")
    (labels, ours), (_, theirs) = (flat_blocks(net.graph, net.another(k)) for k in (1, 2))
    together, (a, b) = stacked(labels, [ours, theirs])
    carriers = [k for k, block in enumerate(labels) if any(isinstance(x, NodeAxis) for x in block)]
    assert len(together) < len(carriers)
    assert len({frozenset(x.node for x in block if isinstance(x, NodeAxis)) for block in together}) == len(together)
    assert sum(x.size for x in a) == sum(ours[k].size for k in carriers)
    assert total(a, b) == pytest.approx(total([ours[k] for k in carriers], [theirs[k] for k in carriers]), rel=1e-5)
    whole, parts = Descent(net.graph, together, a, b), Descent(net.graph, labels, ours, theirs)
    for node in net.graph.nodes.values():
        np.testing.assert_allclose(whole.scores(node), parts.scores(node), rtol=1e-4, atol=1e-4)


def test_the_objective_is_summed_in_float64():
    """Restarts are compared by it, and may differ by less than rounding of float32."""
    ours, theirs = np.float32([[1e8, 1], [-1e8, 1e-3]]), np.ones((2, 2), np.float32)
    assert total([ours], [theirs]) == pytest.approx(1.001)


def flat_blocks(graph, variables):
    """Labels and arrays of all blocks of the weights."""
    weights = {p: np.asarray(x, np.float32) for p, x in networks.flatten(variables).items() if "batch_stats" not in p}
    cut = [block for path, x in weights.items() for block in blocks(graph, path, x)]
    return [labels for labels, _ in cut], [x for _, x in cut]


@pytest.mark.parametrize("name", HEADS)
def test_orders_and_their_inverse_leave_all_as_it_is(name):
    net = networks.network(name)
    _, index = networks.shuffle(net.graph, net.variables, 5)
    back = inverse(net.graph, index)
    chex.assert_trees_all_equal(after(net.graph, index, back), unmoved(net.graph))
    chex.assert_trees_all_equal(after(net.graph, back, index), unmoved(net.graph))
    chex.assert_trees_all_equal(back, networks.undone(net.graph, index))


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


def test_align_names_the_model_that_is_of_another_network():
    net = networks.network("mlp")
    with pytest.raises(ValueError, match="model 1: variables do not fit the graph"):
        alignment.align(WeightMatching(), net.graph, [net.variables, jax.tree.map(lambda x: x[:1], net.variables)])


def test_align_of_nothing_and_of_one():
    net = networks.network("mlp")
    with pytest.raises(ValueError, match="at least one model"):
        alignment.align(WeightMatching(), net.graph, [])
    (same,) = alignment.align(WeightMatching(), net.graph, [net.variables])
    chex.assert_trees_all_equal(same, net.variables)


@pytest.mark.parametrize(("wide", "turns"), [(9, "wide narrow other narrow other"), (5, "wide narrow other")])
def test_a_node_dearer_than_all_others_waits_for_them(wide, turns, monkeypatch):
    """An assignment is cubic in the units: 9^3 > 2 * 6^3 > 5^3."""
    shapes = {"a": (3, wide), "b": (wide, 6), "c": (6, 6), "d": (6, 2)}
    ours, theirs = ({k: networks.data(*s, seed=ord(k) + n) for k, s in shapes.items()} for n in (0, 10))
    apply = lambda v, x: jnp.tanh(jnp.tanh(jnp.tanh(x @ v["a"]) @ v["b"]) @ v["c"]) @ v["d"]  # noqa: E731
    graph = alignment.trace(apply, ours, networks.data(4, 3))
    names = dict(zip(graph.nodes, ("wide", "narrow", "other"), strict=True))
    (labels, a), (_, b) = (flat_blocks(graph, v) for v in (ours, theirs))
    descent, taken = Descent(graph, labels, a, b), []
    monkeypatch.setattr(descent, "_turn", lambda name: bool(taken.append(name)))
    descent.sweep(graph.nodes)
    assert " ".join(names[name] for name in taken) == turns
