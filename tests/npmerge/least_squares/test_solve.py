"""Layers solved by least squares against float64 numpy, block by block."""

import tracemalloc
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import Graph, NodeMap, permutation, rectangular, resize, trace, transport
from npmerge import LeastSquares, Solved, reset_statistics
from npmerge.least_squares.normal_equations import SOLVING, Errors, Sums, solved
from tests.alignment import networks, zoo_plain
from tests.alignment.networks import data, dense
from tests.alignment.test_site_maps import shuffled
from tests.npmerge import test_normalisation as normalised
from tests.npmerge.toys import normal

X = normal(3, 96, 5).astype(np.float32)
BATCHES = [(X[:60], None), (X[60:], None)]  # of unequal sizes
NET = networks.mlp()
MODELS = [NET.another(1), NET.another(2)]
KEPT = {"first": 5, "second": 3}  # units that are merged, of 8 and 7
ORDERS = [{name: np.random.default_rng(k).permutation(n) for name, n in (("first", 8), ("second", 7))} for k in range(2)]


def partial(orders: list[np.ndarray], merged: int) -> list[NodeMap]:
    """[merged | separate a | separate b]: the first units of each order are merged, the others kept apart."""
    maps, n = [], len(orders[0])
    apart = n - merged
    for k, order in enumerate(orders):
        push = np.zeros((merged + len(orders) * apart, n), np.float32)
        push[np.arange(merged), order[:merged]] = 1
        push[merged + k * apart + np.arange(apart), order[merged:]] = len(orders)
        maps.append(rectangular(push, (push > 0).T.astype(np.float32)))
    return maps


def partial_maps(kept: dict[str, int] = KEPT) -> list[dict[str, NodeMap]]:
    pairs = {name: partial([o[name] for o in ORDERS], merged) for name, merged in kept.items()}
    return [{name: pair[k] for name, pair in pairs.items()} for k in range(2)]


def unchanged(count: int = 2) -> list[dict[str, NodeMap]]:
    return [{}] * count


def solve(maps: Any, models: Any = MODELS, net: Any = NET, batches: Any = BATCHES, **options: Any) -> Solved:
    return LeastSquares(**options)(net.apply, net.graph, models, maps, batches)


def outputs(found: Solved, net: Any = NET, x: Any = X) -> np.ndarray:
    return np.asarray(jax.jit(resize(net.apply, net.graph, found.variables))(found.variables, x))


def features64(model: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Inputs and outputs, with the bias, of every layer."""
    h, found = np.float64(X), {}
    for name in ("first", "second", "out"):
        y = h @ np.float64(model[name]["kernel"]) + np.float64(model[name]["bias"])
        found[name], h = (h, y), np.maximum(y, 0)
    return found


def test_identical_models_return_themselves():
    found = solve(unchanged(), [MODELS[0]] * 2)
    chex.assert_trees_all_close(found.variables, MODELS[0], rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_equal_shapes_and_dtypes(found.variables, MODELS[0])
    assert found.left == {}
    assert list(found.before) == list(found.after) == ["first/kernel", "second/kernel", "out/kernel"]
    assert max(found.before.values()) < 1e-6


@pytest.mark.parametrize("sequential", [False, True])
def test_permuted_copies_are_merged_exactly(sequential):
    """Also where half of the units are kept apart."""
    maps = [{name: permutation(order) for name, order in orders.items()} for orders in ORDERS]
    copies = [transport(NET.graph, m, MODELS[0]) for m in maps]
    back = [{name: permutation(np.argsort(order)) for name, order in orders.items()} for orders in ORDERS]
    found = solve(back, copies, sequential=sequential)
    chex.assert_trees_all_close(found.variables, MODELS[0], rtol=1e-4, atol=1e-4)
    pairs = {n: partial([np.argsort(o[n]) for o in ORDERS], merged) for n, merged in KEPT.items()}
    apart = [{name: pair[k] for name, pair in pairs.items()} for k in range(2)]
    found = solve(apart, copies, sequential=sequential)
    np.testing.assert_allclose(outputs(found), NET.apply(MODELS[0], X), rtol=1e-3, atol=1e-3)


def blocks(name: str, side: str) -> list[np.ndarray]:
    """For each model whether it has a unit in each place of the merged network's layer."""
    node = {"first": (None, "first"), "second": ("first", "second"), "out": ("second", None)}[name][side == "out"]
    if node is None:
        return [np.ones(MODELS[0][name]["kernel"].shape[side == "out"], bool)] * 2
    return [np.asarray(m[node].push).any(1) for m in partial_maps()]


def test_the_closed_form_is_numpy_lstsq_of_every_block():
    maps, parents = partial_maps(), [features64(m) for m in MODELS]
    found = solve(maps, ridge=0.0)
    assert found.singular == ()
    for name, node_in, node_out in (("first", None, "first"), ("second", "first", "second"), ("out", "second", None)):
        x, y = (
            sum(z[name][side] @ (np.float64(m[node].push).T if node else np.eye(z[name][side].shape[1]))
                for z, m in zip(parents, maps, strict=True)) / 2
            for side, node in enumerate((node_in, node_out))
        )  # fmt: skip
        kernel, bias = (np.asarray(found.variables[name][key]) for key in ("kernel", "bias"))
        residual = 0.0
        for j in range(y.shape[1]):
            inside = sum(i & o[j] for i, o in zip(blocks(name, "in"), blocks(name, "out"), strict=True)) > 0
            z = np.concatenate([x[:, inside], np.ones((len(x), 1))], 1)
            expected = np.linalg.lstsq(z, y[:, j], rcond=None)[0]
            np.testing.assert_allclose(kernel[inside, j], expected[:-1], rtol=1e-2, atol=2e-3)
            np.testing.assert_allclose(bias[j], expected[-1], rtol=1e-2, atol=2e-3)
            np.testing.assert_array_equal(kernel[~inside, j], 0)
            residual += np.square(z @ expected - y[:, j]).sum()
        assert found.after[f"{name}/kernel"] == pytest.approx(np.sqrt(residual / np.square(y).sum()), rel=1e-2, abs=1e-4)


def test_blocks_that_are_not_allowed_stay_zero():
    for options in ({}, {"sequential": True}, {"method": "gradient", "steps": 5}):
        found = solve(partial_maps(), **options)
        kernel = np.asarray(found.variables["second"]["kernel"])  # 5 + 3 + 3 by 3 + 4 + 4
        assert kernel.shape == (11, 11)
        assert not kernel[5:8, 7:].any()
        assert not kernel[8:, 3:7].any()
        for block in (kernel[:5], kernel[5:8, :7], kernel[8:, :3], kernel[8:, 7:]):
            assert block.all()


def test_without_units_in_common_the_outputs_stay_the_mean():
    """All units apart (the ensemble): the start has no error, and the solution none either."""
    found = solve(partial_maps({"first": 0, "second": 0}))
    expected = sum(np.asarray(NET.apply(m, X)) for m in MODELS) / 2
    np.testing.assert_allclose(outputs(found), expected, rtol=1e-3, atol=1e-3)
    assert max(found.after.values()) < 1e-5


def test_the_merged_network_comes_nearer_to_its_parents():
    expected = sum(np.asarray(NET.apply(m, X)) for m in MODELS) / 2
    far = np.abs(outputs(solve(partial_maps(), ridge=1e6)) - expected).mean()
    for sequential, share in ((False, 0.9), (True, 0.6)):
        assert np.abs(outputs(solve(partial_maps(), sequential=sequential)) - expected).mean() < share * far
    noise = [(np.random.default_rng(8).uniform(-2, 2, (96, 5)).astype(np.float32), None)]  # data of no task do as well
    assert np.abs(outputs(solve(partial_maps(), batches=noise, sequential=True)) - expected).mean() < 0.7 * far


def apart(graph: Graph) -> list[dict[str, NodeMap]]:
    """Half of the units of each node that can change its width by itself merged, the others kept apart."""
    free = [node for node in graph.nodes.values() if not node.index]
    pairs = {node.name: partial([np.arange(node.size)] * 2, node.size // 2) for node in free}
    return [{name: pair[k] for name, pair in pairs.items()} for k in range(2)]


def no_worse(name: str, maps: list[dict[str, NodeMap]], **options: Any) -> Solved:
    net = networks.network(name)
    found = solve(maps, [net.another(1), net.another(2)], net, [(net.inputs, None)], **options)
    chex.assert_tree_all_finite(found.variables)
    assert found.before.keys() == found.after.keys()
    assert all(found.after[site] <= found.before[site] for site in found.before)
    assert any(found.after[site] < 0.9 * found.before[site] for site in found.before)
    return found


@pytest.mark.parametrize("name", ["option_a", "fused_attention", "grouped_queries", "towers"])
def test_no_site_ends_above_its_start(name):
    graph = networks.network(name).graph
    assert no_worse(name, [shuffled(graph, 1), shuffled(graph, 2)]).left == {}


@pytest.mark.parametrize("name", ["resnet", "concatenation"])
def test_nor_where_units_are_kept_apart(name):
    assert no_worse(name, apart(networks.network(name).graph)).left == {}


@pytest.mark.parametrize("name", ["concatenation", "attention"])
def test_nor_one_after_the_other(name):
    graph = networks.network(name).graph
    assert no_worse(name, [shuffled(graph, 1), shuffled(graph, 2)], sequential=True).left == {}


def passed(variables: Any, statistics: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and outputs of every dense layer of `normalised.Net` in evaluation mode, float64."""
    h, found = normalised.DATA.astype(np.float64), []
    for k in range(3):
        y = h @ np.float64(variables["params"][f"Dense_{k}"]["kernel"])
        found.append((h.reshape(-1, h.shape[-1]), y.reshape(-1, y.shape[-1])))
        if k < 2:
            stats = statistics[f"BatchNorm_{k}"]
            h = np.tanh((y - np.float64(stats["mean"])) / np.sqrt(np.float64(stats["var"]) + 1e-5))
    return found


@pytest.fixture(scope="module")
def with_statistics() -> Any:
    """Two networks with BatchNorm: evaluation and training mode, graph, models, batches."""
    train_apply, variables = normalised.network(0.9, 0.5)
    batches = normalised.as_batches(normalised.DATA)

    def apply(v, x):
        with jax.numpy_rank_promotion("allow"):
            return normalised.Net((0.9, 0.5)).apply(v, x)

    def trained(seed: int) -> Any:
        params = {name: networks.fill(x, seed) if "Dense" in name else x for name, x in variables["params"].items()}
        return reset_statistics(train_apply, {**variables, "params": params}, batches)

    return apply, train_apply, trace(apply, variables, batches[0][0]), [trained(1), trained(2)], batches


def test_statistics_are_estimated_anew_before_each_layer(with_statistics):
    """Layer by layer in float64: each reads what the layers before it make with statistics of their own."""
    apply, train_apply, graph, models, batches = with_statistics
    found = LeastSquares(0.0, sequential=True)(apply, graph, models, unchanged(), batches, train_apply=train_apply)
    parents = [passed(m, m["batch_stats"]) for m in models]
    expected = jax.tree.map(np.float64, models[0])
    for k in range(3):
        inputs = passed(expected, normalised.oracle(expected, normalised.DATA))[k][0]
        targets = (parents[0][k][1] + parents[1][k][1]) / 2
        expected["params"][f"Dense_{k}"]["kernel"] = np.linalg.lstsq(inputs, targets, rcond=None)[0]
    expected["batch_stats"] = normalised.oracle(expected, normalised.DATA)
    missing = passed(expected, expected["batch_stats"])[2][1] - targets
    error = np.linalg.norm(missing) / np.linalg.norm(targets)
    assert found.after["params/Dense_2/kernel"] == pytest.approx(error, rel=1e-3)
    chex.assert_trees_all_close(jax.tree.map(np.float64, found.variables), expected, rtol=1e-2, atol=1e-3)


def test_a_convolution_is_a_dense_layer_of_its_patches():
    def apply(v, x):
        h = jax.lax.conv_general_dilated(x, v["w"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        h = h + jnp.broadcast_to(v["b"], h.shape)
        return jnp.tanh(h).mean((1, 2)) @ v["out"]

    models = [{"w": data(3, 2, 4, 5, seed=k), "b": data(5, seed=k + 2), "out": data(5, 3, seed=k + 4)} for k in range(2)]
    x = data(12, 7, 6, 4, seed=9)
    graph = trace(apply, models[0], x)
    maps = [{"w": partial([np.arange(5)] * 2, 2)[k]} for k in range(2)]
    found = LeastSquares(ridge=0.0)(apply, graph, models, maps, [(x, None)])
    assert found.left == {}
    patches = np.stack([np.asarray(x)[:, i : i + 3, j : j + 2] for i in (0, 2, 4) for j in (0, 2, 4)], 1).reshape(-1, 24)
    z = np.concatenate([np.float64(patches), np.ones((len(patches), 1))], 1)
    made = [np.float64(patches) @ np.float64(m["w"]).reshape(24, 5) + np.float64(m["b"]) for m in models]
    y = np.concatenate([(made[0][:, :2] + made[1][:, :2]) / 2, made[0][:, 2:], made[1][:, 2:]], 1)
    expected = np.linalg.lstsq(z, y, rcond=None)[0]
    np.testing.assert_allclose(found.variables["w"].reshape(24, 8), expected[:-1], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.variables["b"], expected[-1], rtol=1e-3, atol=1e-3)


def test_a_site_without_a_bias_gets_none():
    def apply(v, x):
        return jnp.tanh(x @ v["into"]) @ v["out"]

    models = [{"into": data(5, 6, seed=k), "out": data(6, 3, seed=k + 2)} for k in range(2)]
    graph = trace(apply, models[0], X)
    found = LeastSquares(ridge=0.0)(apply, graph, models, unchanged(), BATCHES)
    z = sum(np.tanh(np.float64(X) @ np.float64(m["into"])) for m in models) / 2
    y = sum(np.tanh(np.float64(X) @ np.float64(m["into"])) @ np.float64(m["out"]) for m in models) / 2
    np.testing.assert_allclose(found.variables["out"], np.linalg.lstsq(z, y, rcond=None)[0], rtol=1e-3, atol=1e-3)


def test_the_ridge_pulls_towards_the_start():
    start = jax.tree.map(lambda x: 1.5 * x, MODELS[0])
    found = LeastSquares(ridge=1e9)(NET.apply, NET.graph, MODELS, unchanged(), BATCHES, merged=start)
    chex.assert_trees_all_close(found.variables, start, rtol=1e-5, atol=1e-5)
    x, lam = features64(MODELS[0])["first"][0], 0.3
    found = LeastSquares(ridge=lam)(NET.apply, NET.graph, [MODELS[0]], unchanged(1), BATCHES, merged=start)
    z = np.concatenate([x, np.ones((len(x), 1))], 1)
    gram = z.T @ z
    r = lam * np.trace(gram) / 6 * np.eye(6)
    w, w0 = (np.vstack([np.float64(m["first"]["kernel"]), np.float64(m["first"]["bias"])]) for m in (MODELS[0], start))
    expected = np.linalg.solve(gram + r, gram @ w + r @ w0)
    np.testing.assert_allclose(found.variables["first"]["kernel"], expected[:-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.variables["first"]["bias"], expected[-1], rtol=1e-4, atol=1e-5)


def test_descending_comes_to_the_closed_form():
    closed = solve(partial_maps(), ridge=0.0)
    short, long = (solve(partial_maps(), method="gradient", steps=n, learning_rate=2e-2) for n in (50, 1500))
    for name, best in closed.after.items():
        assert best - 1e-5 <= long.after[name] <= max(1.1 * best, 1e-2)
        assert long.after[name] <= short.after[name] <= long.before[name]
    assert short.before == pytest.approx(closed.before, rel=1e-4, abs=1e-6)


def test_memory_is_bounded_by_pieces_and_rounds():
    whole = solve(partial_maps())
    pieces = solve(partial_maps(), memory_limit=10_000.0)  # one layer at a time, a few examples at a time
    chex.assert_trees_all_close(pieces.variables, whole.variables, rtol=2e-3, atol=2e-3)
    with pytest.raises(ValueError, match="'second/kernel' need 1104 bytes and 8832 to be solved, more than memory_limit=9900"):
        solve(partial_maps(), memory_limit=9900.0)


def test_solving_takes_no_more_memory_than_predicted():
    """Of whole systems and of blocks, regular or not; numpy's arrays are traced, LAPACK's work space among them is not."""
    rng = np.random.default_rng(0)
    for samples, blocks in ((600, False), (600, True), (100, False)):
        x = rng.standard_normal((samples, 300), np.float32)
        sums = Sums(np.float32(samples), x.T @ x, x.T @ x[:, :200], Errors(0.0, 0.0))
        allowed = np.ones((300, 200), bool)
        allowed[:150, :100] &= not blocks
        tracemalloc.start()
        solved(sums, allowed, 0.0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= SOLVING * (sums.gram.nbytes + sums.cross.nbytes)


def test_singular_systems_are_said_and_keep_what_was_not_seen():
    few = [(X[:4], None)]
    for ridge in (0.0, 1e-4):
        found = solve(unchanged(), batches=few, ridge=ridge)
        assert found.singular == ("first/kernel", "second/kernel", "out/kernel")
        assert max(found.after.values()) < 0.1
    flat = [(X * np.float32([1, 1, 1, 1, 0]), None)]
    start = jax.tree.map(lambda x: 1.5 * x, MODELS[0])
    found = LeastSquares(ridge=0.0)(NET.apply, NET.graph, MODELS[:1], unchanged(1), flat, merged=start)
    assert "first/kernel" in found.singular
    kernel = np.asarray(found.variables["first"]["kernel"])
    np.testing.assert_allclose(kernel[:4], MODELS[0]["first"]["kernel"][:4], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(kernel[4], start["first"]["kernel"][4])


def test_copies_are_solved_one_by_one():
    """The steps of a scan and the groups of a convolution."""

    def apply(v, x):
        h = jax.lax.conv_general_dilated(
            x, v["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
        )
        return jnp.tanh(h).mean((1, 2)) @ v["out"]

    models = [{"w": data(2, 2, 1, 4, seed=k), "out": data(4, 3, seed=k + 2)} for k in range(2)]
    x = data(8, 5, 5, 4, seed=9)
    found = LeastSquares(ridge=0.0)(apply, trace(apply, models[0], x), models, unchanged(), [(x, None)])
    chex.assert_trees_all_close(found.variables["w"], (models[0]["w"] + models[1]["w"]) / 2, rtol=1e-4, atol=1e-5)
    towers = networks.network("towers")
    found = solve([shuffled(towers.graph)] * 2, [towers.variables] * 2, towers, [(data(64, 5), None)])
    assert found.left == {}
    expected = transport(towers.graph, shuffled(towers.graph), towers.variables)
    chex.assert_trees_all_close(found.variables, expected, rtol=1e-3, atol=1e-3)


def test_what_is_left_alone_is_said():
    def apply(v, x):
        h = jnp.tanh(x @ v["w"])
        h = jnp.tanh(h @ v["again"]) @ v["again"]
        h = jnp.tensordot(h, v["heads"], 1)  # (samples, heads, units), then one layer for all heads
        return jnp.tanh(h @ v["each"]).sum((1, 2))

    shapes = {"w": (5, 6), "again": (6, 6), "heads": (6, 3, 4), "each": (4, 2)}
    models = [{name: data(*s, seed=k + len(name)) for name, s in shapes.items()} for k in (0, 10)]
    graph = trace(apply, models[0], X)
    found = LeastSquares()(apply, graph, models, [shuffled(graph, 1), shuffled(graph, 2)], BATCHES)
    assert found.left == {
        "again": "its weight is read elsewhere too",
        "again#2": "its weight is read elsewhere too",
        "each": "its samples run over the units of 'heads#1'",
    }
    assert set(found.after) == {"w", "heads"}
    tied = zoo_plain.BUILDERS["tied_embedding"]()
    found = solve(unchanged(1), [tied.variables], tied, [(tied.inputs, None)])
    assert found.left == {"table": "its weight is read elsewhere too"}
    towers = networks.network("towers")
    found = solve(unchanged(1), [towers.variables], towers, [(towers.inputs, None)], sequential=True)
    assert set(found.left) == {"layers/into", "layers/out"}
    assert "inside a loop" in found.left["layers/into"]


def test_networks_of_different_widths():
    """Each with its own function and graph, brought to one width."""

    def apply(v, x):
        return dense(v["out"], jnp.tanh(dense(v["into"], x)))

    def sized(n: int, seed: int) -> Any:
        return networks.fill({"into": networks.layer(5, n), "out": networks.layer(n, 3)}, seed)

    models = [sized(6, 1), sized(4, 2)]
    graphs = [trace(apply, m, X) for m in models]
    apart = [np.zeros((10, 6), np.float32), np.zeros((10, 4), np.float32)]
    apart[0][:6], apart[1][6:] = 2 * np.eye(6), 2 * np.eye(4)
    maps = [{"into": rectangular(p, (p > 0).T.astype(np.float32))} for p in apart]
    found = LeastSquares()(apply, graphs, models, maps, BATCHES)
    expected = sum(np.asarray(apply(m, X)) for m in models) / 2
    np.testing.assert_allclose(apply(found.variables, X), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sequential", [False, True])
def test_equal_widths_are_not_traced_again(sequential):
    traced = []

    def apply(v, x):
        traced.append(x.shape)
        return NET.apply(v, x)

    method, graph = LeastSquares(sequential=sequential), trace(apply, MODELS[0], X)
    first = method(apply, graph, MODELS, partial_maps(), BATCHES)
    count = len(traced)
    assert method(apply, graph, MODELS[::-1], partial_maps(), BATCHES).before != first.before
    assert len(traced) == count > 0


def test_stored_dtypes_are_kept():
    halves = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), m) for m in MODELS]

    def apply(v, x):
        return networks.mlp_apply(jax.nn.relu)(v, x.astype(jnp.bfloat16))

    graph = trace(apply, halves[0], X)
    found = LeastSquares()(apply, graph, halves, unchanged(), BATCHES)
    chex.assert_trees_all_equal_shapes_and_dtypes(found.variables, halves[0])
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x.astype(jnp.float32), found.variables), solve(unchanged()).variables, rtol=0.1, atol=0.1
    )


def test_models_of_another_dtype_than_was_traced_are_refused():
    def apply(v, x):
        return NET.apply(v, x.astype(v["first"]["bias"].dtype))

    halves = [jax.tree.map(lambda x: x.astype(jnp.float16), m) for m in MODELS]
    with pytest.raises(ValueError, match=r"is not where it was traced.*, variables and inputs of the dtypes"):
        LeastSquares()(apply, trace(apply, MODELS[0], X), halves, unchanged(), BATCHES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": []}, "least squares needs data: got no batches"),
        ({"batches": [X]}, "each batch must be a tuple"),
        ({"models": []}, "needs the models that are merged, got none"),
        ({"maps": unchanged(3)}, "expected maps and a function for each of 2 models: got 3 and 2"),
        ({"maps": [{"third": permutation(np.arange(8))}, {}]}, "unknown node 'third': expected one of first, second"),
        ({"maps": [{"first": permutation(np.arange(7))}, {}]}, "the map of 'first' takes 7 units, the node has 8"),
        ({"maps": [partial_maps()[0], {}]}, "to different widths: 'first' has 11 and 8 units"),
        ({"models": [MODELS[0], {"first": MODELS[1]["first"]}]}, "variables do not fit the graph at 'out/bias'"),
        ({"merged": {"first": MODELS[1]["first"]}}, "variables do not fit the graph at 'out/bias'"),
        ({"batches": [(np.where(X > 2, np.nan, X), None)]}, "the inputs of a batch have [0-9]+ non-finite values"),
    ],
)
def test_errors(arguments, message):
    given = {"models": MODELS, "maps": unchanged(), "batches": BATCHES, "merged": None} | arguments
    merged = given.pop("merged")
    with pytest.raises(ValueError, match=message):
        LeastSquares()(NET.apply, NET.graph, *given.values(), merged=merged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "newton"}, "method must be 'closed' or 'gradient', got 'newton'"),
        ({"ridge": -1.0}, "ridge must be a finite number of 0 or more, got -1.0"),
        ({"steps": 1.5}, "steps must be an integer of 1 or more, got 1.5"),
        ({"learning_rate": np.nan}, "learning_rate must be a finite number above 0, got nan"),
        ({"memory_limit": np.inf}, "memory_limit must be a finite number above 0, got inf"),
        ({"sequential": True, "method": "gradient"}, "sequential needs method='closed'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        LeastSquares(**options)


def test_a_descent_that_diverges_is_said():
    with pytest.raises(ValueError, match="the descent diverged: lower learning_rate"):
        solve(unchanged(), method="gradient", learning_rate=1e38, steps=3)
