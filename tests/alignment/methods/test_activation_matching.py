"""Permutations from activations."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import ActivationMatching, Moments, NodeMoments, matched_correlation
from alignment.activations.correlation import assign_living, correlation, living
from alignment.assignment import assign, assign_two_level
from tests.alignment import networks
from tests.alignment.activations.test_moments import collect

BATCHES = {name: [networks.data(16, 5, seed=s) for s in range(3)] for name in ("mlp", "towers")}
TOKENS = [networks.data(3, 6, 5, seed=s) for s in range(3)]
BATCHES |= dict.fromkeys(("attention", "fused_attention", "grouped_queries"), TOKENS)
IMAGES = [networks.data(3, 8, 8, 3, seed=s) for s in range(6)]


@pytest.mark.parametrize(
    "name", ["mlp", "resnet", "option_a", "vgg", "towers", "attention", "fused_attention", "grouped_queries"]
)
def test_a_planted_permutation_is_recovered(name):
    """Of units, of heads, of units inside the heads, of queries inside their groups, of all of them in every layer."""
    net = networks.network(name)
    moved, index = networks.shuffle(net.graph, net.variables, 5)
    models = [net.variables, moved]
    stats = {NodeMoments: collect(name, models, BATCHES.get(name, IMAGES))}
    theta = ActivationMatching().init(net.graph, models, stats=stats)
    same, aligned = alignment.align(ActivationMatching(), net.graph, models, stats=stats)
    chex.assert_trees_all_equal(theta[1], networks.undone(net.graph, index))
    chex.assert_trees_all_equal(same, net.variables)
    chex.assert_trees_all_equal(aligned, net.variables)


def test_a_node_that_meets_itself_in_an_outer_product_is_recovered():
    def apply(v, x):
        h = jnp.tanh(x @ v["a"])
        outer = h[:, :, None] * h[:, None, :]
        return outer.reshape(outer.shape[0], -1) @ v["b"]

    start, x = {"a": networks.data(4, 5), "b": networks.data(25, 3)}, networks.data(40, 4)
    graph = alignment.trace(apply, start, x)
    moved, index = networks.shuffle(graph, start, 2)
    statistic = NodeMoments()
    measured = jax.jit(lambda models: statistic.measure(apply, graph, models, (x, None)))([start, moved])
    theta = ActivationMatching().init(graph, [start, moved], stats={NodeMoments: statistic.finalise(measured)})
    np.testing.assert_array_equal(theta[1]["a"], np.argsort(index["a"]))


def test_several_models_are_each_aligned_to_the_first():
    net = networks.network("mlp")
    models = [net.variables, *(networks.shuffle(net.graph, net.variables, seed)[0] for seed in (1, 2))]
    stats = {NodeMoments: collect("mlp", models, BATCHES["mlp"])}
    for aligned in alignment.align(ActivationMatching(), net.graph, models, stats=stats):
        chex.assert_trees_all_equal(aligned, net.variables)


def moments(x, y):
    """Moments of two models' features, by numpy."""
    n = x.shape[1]
    both = np.cov(np.concatenate([x, y], 1).T, bias=True).astype(np.float32)
    return Moments(
        np.float32(len(x)),
        np.stack([x.mean(0), y.mean(0)]).astype(np.float32),
        np.stack([both[:n, :n], both[n:, n:]]),
        both[:n].reshape(n, 2, n).swapaxes(0, 1),
    )


def one_node(size, *, index=(), copies=(), group="permutation"):
    """A graph of nothing but a node "n" (and the nodes that it is indexed by), which has a tap."""
    nodes = {i: alignment.Node(i, c, "permutation") for i, c in zip(index, copies, strict=True)}
    nodes["n"] = alignment.Node("n", size, group, index, copies)
    return alignment.Graph(nodes, {}, (), dict.fromkeys(nodes), (), {})


def test_correlation_is_pearsons_and_zero_for_dead_units():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 50, 4)).astype(np.float32)
    y += x[:, ::-1]
    x[:, 2] = y[:, 1] = 3.0  # dead: constant, not zero
    got = correlation(moments(x, y))
    for i, j in itertools.product(range(4), range(4)):
        expected = 0 if i == 2 or j == 1 else np.corrcoef(x[:, i], y[:, j])[0, 1]
        assert got[i, j] == pytest.approx(expected, abs=1e-5)


COSTS = ("correlation", "uncentred", "euclidean")
costs = pytest.mark.parametrize("cost", COSTS)


@pytest.mark.parametrize("name", ["mlp", "attention", "towers"])
@pytest.mark.parametrize("cost", COSTS[1:])
def test_a_planted_permutation_is_recovered_by_every_cost(name, cost):
    net = networks.network(name)
    moved, index = networks.shuffle(net.graph, net.variables, 5)
    models = [net.variables, moved]
    theta = ActivationMatching(cost).init(net.graph, models, stats={NodeMoments: collect(name, models, BATCHES[name])})
    chex.assert_trees_all_equal(theta[1], networks.undone(net.graph, index))


def features(seed, n=5, samples=40):
    x, y = np.random.default_rng(seed).standard_normal((2, samples, n))
    return np.float32(x + 2), np.float32(x[:, ::-1] + 2 * y + np.arange(n))


@costs
def test_scores_are_those_of_the_features(cost):
    x, y = features(0)
    expected = {
        "correlation": np.corrcoef(x.T, y.T)[:5, 5:],
        "uncentred": x.T @ y / len(x),
        "euclidean": -np.sqrt(np.square(x[:, :, None] - y[:, None]).sum(0)),
    }
    np.testing.assert_allclose(ActivationMatching(cost).scores(moments(x, y)), expected[cost], rtol=1e-4, atol=1e-5)


@costs
def test_the_assignment_is_the_best_of_all_permutations(cost):
    """Brute force over 120 of them, on the features themselves."""
    for seed in range(5):
        x, y = features(seed)
        index = ActivationMatching(cost).solve(moments(x, y))
        scores = ActivationMatching(cost).scores(moments(x, y))
        best = max(itertools.permutations(range(5)), key=lambda p: sum(scores[i, p[i]] for i in range(5)))
        assert index.tolist() == list(best)


def test_costs_differ_and_the_squared_distance_is_the_uncentred_one():
    """By hand: a loud unit wins by E[a b], the distance sees that it is too loud."""
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = np.stack([np.cos(t), np.cos(t + 1.2)], 1)
    y = np.stack([9 * np.cos(t + 0.5), np.cos(t + 0.1)], 1)
    found = {cost: ActivationMatching(cost).solve(moments(np.float32(x), np.float32(y))).tolist() for cost in COSTS}
    squares = np.square(x[:, :, None] - y[:, None]).sum(0)
    assert found["correlation"] == [1, 0]
    assert (squares[0, 0] + squares[1, 1] < squares[0, 1] + squares[1, 0]) == (found["uncentred"] == [0, 1])
    assert found["uncentred"] == [0, 1]
    distances = np.sqrt(squares)
    assert (distances[0, 0] + distances[1, 1] < distances[0, 1] + distances[1, 0]) == (found["euclidean"] == [0, 1])
    assert found["euclidean"] == [1, 0]


def test_heads_of_one_unit_are_paired_as_their_units_would_be():
    """The same waves as two heads: what is inside them is compared by the cost, not by correlation whatever the cost."""
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x, y = np.stack([np.cos(t), np.cos(t + 1.2)], 1), np.stack([9 * np.cos(t + 0.5), np.cos(t + 0.1)], 1)
    graph = one_node(1, index=("heads",), copies=(2,))
    silent = moments(*np.zeros((2, 60, 2), np.float32))
    stats = {NodeMoments: {"n": moments(np.float32(x), np.float32(y)), "heads": silent}}
    theta = {cost: ActivationMatching(cost).init(graph, [None, None], stats=stats)[1] for cost in COSTS}
    found = {cost: model["heads"].tolist() for cost, model in theta.items()}
    assert found == {"correlation": [1, 0], "uncentred": [0, 1], "euclidean": [1, 0]}


@costs
@pytest.mark.parametrize(("ours", "theirs"), [((1, 4), (0, 3)), ((2,), ()), ((), (2,)), ((0, 1, 2), (4,)), ((0,), (1, 2, 3))])
def test_dead_units_are_left_to_the_end_and_paired_in_order(cost, ours, theirs):
    """Zero or constant in one model, in both, in different numbers: the living first, the rest stay or ascend."""
    x, y = features(3)
    x[:, list(ours)], y[:, list(theirs)] = 0.0, 7.0
    m = moments(x, y)
    index = ActivationMatching(cost).solve(m)
    left = [i for i in range(5) if i not in ours], [j for j in range(5) if j not in theirs]
    scores, n = ActivationMatching(cost).scores(m), min(map(len, left))
    pairings = [
        tuple(zip(a, b, strict=True)) for a in itertools.combinations(left[0], n) for b in itertools.permutations(left[1], n)
    ]
    best = max(pairings, key=lambda pairs: sum(scores[p] for p in pairs))
    rest = [i for i in range(5) if i not in dict(best)], [j for j in range(5) if j not in dict(best).values()]
    still = {i for i in rest[0] if i in rest[1]}
    moved = zip(*([i for i in side if i not in still] for side in rest), strict=True)
    assert dict(enumerate(index.tolist())) == dict(best) | {i: i for i in still} | dict(moved)


@costs
def test_ties_are_broken_towards_the_identity(cost):
    """Units 1 and 2 do the same, and fit each other as well as themselves but for rounding; 4 is dead in theirs alone."""
    x, _ = features(3)
    x[:, 2] = x[:, 1]
    y = x.copy()
    y[:, 1] *= np.float32(1 + 1e-7)
    y[:, [0, 3]], y[:, 4] = x[:, [3, 0]], 0
    x[:, 2] = np.nextafter(x[:, 2], np.float32(9))
    scores = ActivationMatching(cost).scores(moments(x, y))
    assert abs(scores[1, 1] + scores[2, 2] - scores[1, 2] - scores[2, 1]) < 1e-5 * np.abs(scores).max()
    assert ActivationMatching(cost).solve(moments(x, y)).tolist() == [3, 1, 2, 0, 4]
    swapped = scores - 1e-7 * np.abs(scores).max() * np.eye(5)  # rounding, to the disadvantage of all that stays
    assert assign_living(swapped, *living(moments(x, y))).tolist() == [3, 1, 2, 0, 4]


def test_a_unit_is_dead_if_it_varies_no_more_than_rounding():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 4)).astype(np.float32) * np.float32([1, 1e-4, 1e-8, 1e-3])
    y = x.copy()
    y[:, 3] += 1e4  # all that is left is noise of float32
    alive = living(moments(x, y))
    assert alive.tolist() == [[True, True, False, True], [True, True, False, False]]
    assert assign_living(np.zeros((3, 3)), *np.zeros((2, 3), bool)).tolist() == [0, 1, 2]


@costs
def test_heads_are_paired_by_the_cost_and_dead_ones_in_order(cost):
    """Four heads of three units, of which theirs 0 and ours 2 are dead; inside the others one unit is dead in both.

    Our dead head is a large constant: by E[a b] it would be worth most with their loudest one.
    """
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4, 200, 3)).astype(np.float32) + 1
    x[2], x[:, :, 1] = 0, 0
    order, units = [2, 0, 3, 1], [2, 1, 0]  # their head p is our head order[p]
    x[1] *= 3
    y = x[order][:, :, units]
    x[2] = 100
    graph = one_node(3, index=("heads",), copies=(4,))
    stats = {NodeMoments: {"n": moments(*(np.concatenate(list(z), 1) for z in (x, y)))}}
    stats[NodeMoments]["heads"] = moments(*np.zeros((2, 200, 4), np.float32))
    theta = ActivationMatching(cost).init(graph, [None, None], stats=stats)[1]
    assert theta["heads"].tolist() == np.argsort(order).tolist()
    assert theta["n"].tolist() == [[0, 1, 2], units, units, units]


@costs
def test_the_outcome_is_the_same_on_every_call(cost):
    x, y = features(1)
    x[:, [1, 2]] = y[:, [0, 3]] = 0
    assert len({tuple(ActivationMatching(cost).solve(moments(x, y))) for _ in range(3)}) == 1


def test_an_unknown_cost_is_refused():
    with pytest.raises(ValueError, match="cost must be one of 'correlation', 'uncentred', 'euclidean', got 'cosine'"):
        ActivationMatching("cosine")


def test_matched_correlation_is_the_mean_over_living_pairs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4)).astype(np.float32)
    y = x * np.float32([3, -0.5, 1, 1]) + 1
    x[:, 2], y[:, 3] = 0, 5  # dead in one each
    m = moments(x, y)
    assert matched_correlation({"n": m})["n"] == pytest.approx([0.0], abs=1e-5)  # +1 and -1
    noisy = moments(x, y + rng.standard_normal(y.shape).astype(np.float32))
    expected = np.mean([np.corrcoef(x[:, i], (y + 0)[:, i])[0, 1] for i in (0, 1)])
    assert matched_correlation({"n": m})["n"] == pytest.approx([expected], abs=1e-4)
    assert noisy.mean.shape == m.mean.shape
    nothing = moments(np.zeros_like(x), y)
    assert matched_correlation({"n": nothing})["n"].tolist() == [0.0]
    same = x * np.float32([1, 1, 0, 1])  # a dead unit is no unit that disagrees
    assert matched_correlation({"n": moments(same, same)})["n"] == pytest.approx([1.0], abs=1e-5)


@pytest.mark.parametrize(("name", "seeds"), [("mlp", [1]), ("towers", [])])
def test_matched_correlation_rises_when_models_are_aligned(name, seeds):
    """One for aligned copies; every other model with the first; copies of a node taken together."""
    net = networks.network(name)
    models = [net.variables, networks.shuffle(net.graph, net.variables, 5)[0], *map(net.another, seeds)]
    before = collect(name, models, BATCHES[name])
    aligned = alignment.align(ActivationMatching(), net.graph, models, stats={NodeMoments: before})
    after = matched_correlation(collect(name, aligned, BATCHES[name]))
    assert after.keys() == before.keys()
    for node, found in after.items():
        assert found.shape == (len(models) - 1,)
        assert found[0] == pytest.approx(1, abs=1e-5)
        assert matched_correlation(before)[node][0] < 0.9 or net.graph.nodes[node].group == "linear"
        assert (found >= matched_correlation(before)[node]).all()


def test_matching_ignores_the_scale_of_a_unit():
    """Pearson, not covariance: a loud unit must not win a place that is not its own."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 4)).astype(np.float32)
    y = x[:, [2, 0, 3, 1]] * np.float32([1, 100, 1e-3, 10]) + 0.1 * x.mean(1, keepdims=True)
    stats = {NodeMoments: {"n": moments(x, np.float32(y))}}
    theta = ActivationMatching().init(one_node(4), [None, None], stats=stats)
    assert theta[1]["n"].tolist() == [1, 3, 0, 2]


def test_the_reference_stays_even_with_dead_and_doubled_units():
    """Its own correlation has ties there, but model 0 is the identity by definition."""
    rng = np.random.default_rng(1)
    for seed in range(20):
        x = rng.standard_normal((30, 6)).astype(np.float32)
        x[:, [4, 5]] = x[:, [0, 1]]
        x[:, 2] = 0
        stats = {NodeMoments: {"n": moments(x, rng.standard_normal((30, 6)).astype(np.float32))}}
        theta = ActivationMatching().init(one_node(6), [None, None], stats=stats)
        assert theta[0]["n"].tolist() == list(range(6)), seed


def test_nodes_without_activations_are_warned_of_and_stay():
    """But not heads, which are matched by what is inside them."""
    graph = one_node(2, index=("heads",), copies=(2,))
    nodes = graph.nodes | {name: alignment.Node(name, 3, "permutation") for name in ("unseen", "hidden")}
    graph = alignment.Graph(nodes, {}, (), {"n": graph.taps["n"]}, (), {})
    stats = {NodeMoments: {"n": moments(*np.random.default_rng(0).standard_normal((2, 50, 4)).astype(np.float32))}}
    with pytest.warns(UserWarning, match="ActivationMatching leaves nodes without activations as they are: unseen, hidden$"):
        theta = ActivationMatching().init(graph, [None, None], stats=stats)
    assert theta[1].keys() == {"n", "heads"}


# --------------------------------------------------------------------------------------------------------- assignment


def test_assignment_is_optimal_by_brute_force_even_with_ties():
    """Compared by objective: with ties the permutation itself is arbitrary."""
    for seed in range(20):
        scores = np.random.default_rng(seed).integers(0, 3, (5, 5)).astype(float)
        best = max(sum(scores[i, p[i]] for i in range(5)) for p in itertools.permutations(range(5)))
        index = assign(scores)
        assert sorted(index) == list(range(5))
        assert scores[np.arange(5), index].sum() == best


def best_two_level(direct, inner):
    """The largest total over all orders of the groups and of the units inside each of them."""
    places, units = len(direct), [s.shape[-1] for s in inner]
    best = -np.inf
    for groups in itertools.permutations(range(places)):
        total = sum(direct[p, g] for p, g in enumerate(groups))
        for scores, n in zip(inner, units, strict=True):
            for p, g in enumerate(groups):
                total += max(sum(scores[p, g, i, o[i]] for i in range(n)) for o in itertools.permutations(range(n)))
        best = max(best, total)
    return best


@pytest.mark.parametrize("sizes", [(), (3,), (3, 2)])
def test_two_levels_are_optimal_by_brute_force_even_with_ties(sizes):
    """Three groups with none, one or two kinds of units inside them. The units' orders stand at the groups' old places."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        direct = rng.integers(0, 5, (3, 3)).astype(float)
        inner = [rng.integers(0, 4, (3, 3, n, n)).astype(float) for n in sizes]
        index, orders = assign_two_level(direct, inner)
        assert sorted(index) == [0, 1, 2]
        assert [order.shape for order in orders] == [(3, n) for n in sizes]
        total = sum(direct[p, g] for p, g in enumerate(index))
        for scores, order in zip(inner, orders, strict=True):
            assert (np.sort(order) == np.arange(scores.shape[-1])).all()
            total += sum(scores[p, g, i, order[g, i]] for p, g in enumerate(index) for i in range(scores.shape[-1]))
        assert total == best_two_level(direct, inner)


def test_groups_go_where_their_units_fit_although_they_do_not_fit_themselves():
    direct = np.eye(2)
    inner = np.zeros((2, 2, 2, 2))
    inner[0, 1] = [[0, 3], [3, 0]]  # group 1 fits place 0 with its units exchanged
    index, (order,) = assign_two_level(direct, [inner])
    assert (index.tolist(), order[1].tolist()) == ([1, 0], [1, 0])


def test_assignment_is_deterministic():
    scores = np.zeros((6, 6))
    assert (assign(scores) == assign(scores.copy())).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_assignment_refuses_non_finite_scores(bad):
    scores = np.eye(4)
    scores[1, 2] = bad
    with pytest.raises(ValueError, match=r"\(4, 4\).*non-finite"):
        assign(scores)


def test_moments_that_say_nothing_have_no_matched_correlation():
    """NaN is not the zero of dead units."""
    taken = collect("mlp", [networks.network("mlp").variables] * 2, BATCHES["mlp"])
    broken = taken["second"]._replace(cross=taken["second"].cross.at[1, 0, 0].set(jnp.nan))
    for wrong, message in (
        (taken | {"second": broken}, "got non-finite moments of node 'second'"),
        ({NodeMoments: taken}, r"got all that was collected: give it stats\[NodeMoments\]"),
        (taken["first"], "got Moments: give it"),
        ({node: alignment.Joint(m.samples, m.mean, m.cross) for node, m in taken.items()}, "got Joint of 'first'"),
        (collect("mlp", [networks.network("mlp").variables], BATCHES["mlp"]), "got moments of one model"),
    ):
        with pytest.raises(ValueError, match=f"matched_correlation .*{message}"):
            matched_correlation(wrong)
