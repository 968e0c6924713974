"""Maps of nodes and what they do to a network."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import NodeMap, compose, general, identity, invert, orthogonal, permutation, rectangular, transport
from tests.alignment import networks
from tests.alignment.networks import elements

KEY = jax.random.key(0)


# ------------------------------------------------------------------------------------------------------- constructors


def test_permutation_puts_old_unit_index_i_at_place_i():
    m = permutation(jnp.array([2, 0, 1]))
    features = jnp.array([10.0, 20.0, 30.0])
    chex.assert_trees_all_equal(m.push @ features, jnp.array([30.0, 10.0, 20.0]))
    chex.assert_trees_all_equal(m.pull @ (m.push @ features), features)


def test_composing_applies_the_second_argument_first():
    first, second = jnp.array([2, 0, 1]), jnp.array([1, 0, 2])
    both = compose(permutation(second), permutation(first))
    chex.assert_trees_all_equal(both, permutation(first[second]))


def test_composing_with_the_inverse_is_the_identity():
    m = general(np.asarray(networks.data(4, 4)) + 3 * np.eye(4, dtype=np.float32))
    for both in (compose(m, invert(m)), compose(invert(m), m)):
        chex.assert_trees_all_close(both, identity(4), atol=1e-5)


def test_general_inverts():
    push = np.asarray(networks.data(5, 5))
    np.testing.assert_allclose(general(push).pull @ push, np.eye(5), atol=1e-4)


def test_permutations_are_told_from_all_other_maps():
    index = jnp.array([[2, 0, 1], [0, 1, 2]])
    assert alignment.maps.is_permutation(permutation(index[0])) and alignment.maps.is_permutation(permutation(index))
    doubled = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    scaled = np.diag(np.float32([1, 2, 1]))
    shared = np.float32([[1, 0, 0], [0, 1, 1], [1, 0, 0]])
    others = [NodeMap(m, m.T) for m in (doubled, doubled.T, scaled, -np.eye(3, dtype=np.float32), shared)]
    others += [rectangular(jnp.eye(5, 3), jnp.eye(3, 5)), rectangular(jnp.eye(3, 5), jnp.eye(5, 3))]
    others += [NodeMap(np.eye(3, dtype=np.float32), 2 * np.eye(3, dtype=np.float32))]
    assert not any(map(alignment.maps.is_permutation, others))


def test_rectangular_maps_compose():
    widen = rectangular(jnp.eye(5, 3), jnp.eye(3, 5))
    chex.assert_trees_all_equal(compose(invert(widen), widen), identity(3))
    assert compose(widen, invert(widen)).push.shape == (5, 5)


def test_rectangular_shapes_must_be_each_others_transpose():
    with pytest.raises(ValueError, match=r"\(5, 3\) and \(5, 3\)"):
        rectangular(jnp.eye(5, 3), jnp.eye(5, 3))


def test_every_copy_has_a_matrix_of_its_own():
    """Two by three copies: what a constructor makes of all of them is what it makes of each."""
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.broadcast_to(np.arange(4), (2, 3, 4)), axis=-1)
    others = rng.permuted(orders, axis=-1)
    pushes = (rng.standard_normal((2, 3, 4, 4)) + 3 * np.eye(4)).astype(np.float32)
    made = {
        "permutation": (permutation(orders), lambda c: permutation(orders[c])),
        "identity": (identity(4, (2, 3)), lambda c: identity(4)),
        "general": (general(pushes), lambda c: general(pushes[c])),
        "orthogonal": (orthogonal(permutation(orders).push), lambda c: permutation(orders[c])),
        "invert": (invert(general(pushes)), lambda c: invert(general(pushes[c]))),
        "compose": (compose(permutation(others), permutation(orders)), lambda c: permutation(orders[c][others[c]])),
        "rectangular": (
            rectangular(pushes[..., :3, :], pushes[..., :3]),
            lambda c: rectangular(pushes[c][:3], pushes[c][:, :3]),
        ),
    }
    for name, (together, alone) in made.items():
        for c in np.ndindex(2, 3):
            each = jax.tree.map(lambda x, c=c: np.asarray(x)[c], together)
            chex.assert_trees_all_close(each, jax.tree.map(np.asarray, alone(c)), atol=1e-5, custom_message=name)


@pytest.mark.parametrize("bad", [[[0, 1, 2], [0, 2, 2]], [[0, 1, 2], [1, 2, 3]]])
def test_one_copy_that_is_no_permutation_is_refused(bad):
    with pytest.raises(ValueError, match="not a permutation of 3 units"):
        permutation(np.array(bad))


def test_one_singular_copy_is_refused():
    push = np.stack([np.eye(3), np.ones((3, 3))])
    with pytest.raises(ValueError, match=r"invertible matrix, got one of shape \(2, 3, 3\)"):
        general(push)
    with pytest.raises(ValueError, match=r"\(2, 3, 4\), singular or not square"):
        general(np.ones((2, 3, 4)))


# ---------------------------------------------------------------------------------------------------------- transport


def test_transport_by_hand():
    """Out axes get push, in axes the transpose of pull, vectors push."""
    net = networks.network("linear_mlp")
    m = jax.tree.map(np.asarray, general(np.asarray(networks.data(8, 8)) + 4 * np.eye(8, dtype=np.float32)))
    moved = transport(net.graph, {"first": m}, net.variables)
    first, second = jax.tree.map(np.asarray, (net.variables["first"], net.variables["second"]))
    chex.assert_trees_all_close(moved["first"]["kernel"], first["kernel"] @ m.push.T, atol=1e-5)
    chex.assert_trees_all_close(moved["first"]["bias"], m.push @ first["bias"], atol=1e-5)
    chex.assert_trees_all_close(moved["second"]["kernel"], m.pull.T @ second["kernel"], atol=1e-5)
    chex.assert_trees_all_equal(moved["second"]["bias"], second["bias"])
    chex.assert_trees_all_equal(moved["out"], net.variables["out"])


def test_transport_of_indexed_nodes_by_hand():
    """Layer by layer and tower by tower: first the units of tower h by the matrix of tower h, then the towers."""
    net = networks.network("towers")
    maps = elements(net.graph, 1)
    stream, towers, units = (maps[name] for name in ("embed", "layers/into#1", "layers/into#2"))
    moved = transport(net.graph, maps, net.variables)
    old = jax.tree.map(np.asarray, net.variables["layers"])
    expected = {name: np.zeros_like(x) for name, x in old.items()}
    for step in range(3):
        for now, before in np.ndindex(2, 2):
            push, pull = towers.push[step, now, before], towers.pull[step, before, now]
            u = units.push[step, before]
            expected["into"][step, :, now] += push * stream.pull.T @ old["into"][step, :, before] @ u.T
            expected["with_bias"][step, now] += push * u @ old["with_bias"][step, before]
            back = units.pull[step, before].T
            expected["out"][step, now] += pull * back @ old["out"][step, before] @ stream.push.T
    chex.assert_trees_all_close(moved["layers"], expected, atol=1e-5)
    assert np.abs(towers.push[..., 0, 1]).max() > 0  # the towers of some layer change places


@pytest.mark.parametrize("name", ["option_a", "vgg", "fused_attention", "towers"])
def test_transport_and_back(name):
    net = networks.network(name)
    maps = elements(net.graph)
    moved = transport(net.graph, maps, net.variables)
    gaps = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), moved, net.variables)
    assert max(jax.tree.leaves(gaps)) > 0.1
    back = moved  # a map acts before that of its index, so the way back is the other way round
    for depth in range(3):
        there = {n: invert(m) for n, m in maps.items() if len(net.graph.nodes[n].index) == depth}
        still = {n: identity(node.size, node.copies) for n, node in net.graph.nodes.items()}
        back = transport(net.graph, still | there, back)
    chex.assert_trees_all_close(back, net.variables, atol=1e-5)


@pytest.mark.parametrize("name", ["option_a", "concatenation"])
def test_transport_is_a_group_action(name):
    net = networks.network(name)
    one, two = elements(net.graph, 1), elements(net.graph, 2)
    stepwise = transport(net.graph, two, transport(net.graph, one, net.variables))
    at_once = transport(net.graph, {n: compose(two[n], one[n]) for n in one}, net.variables)
    chex.assert_trees_all_close(stepwise, at_once, atol=1e-5)


def test_no_maps_change_nothing():
    net = networks.network("mlp")
    chex.assert_trees_all_equal(transport(net.graph, {}, net.variables), net.variables)


def test_duplicating_units_keeps_the_function():
    """Every unit twice, the consumer taking half of each: the oldest trick to widen a network."""
    net = networks.network("mlp")
    push = jnp.concatenate([jnp.eye(8), jnp.eye(8)])
    wide = transport(net.graph, {"first": rectangular(push, push.T / 2)}, net.variables)
    assert wide["second"]["kernel"].shape == (16, 7)
    assert wide["first"]["bias"].shape == (16,)
    chex.assert_trees_all_close(net.apply(wide, net.inputs), net.apply(net.variables, net.inputs), atol=1e-5)


def test_padding_units_keeps_the_function_through_a_flattened_image():
    """New channels appear at every position of the flattened axis, not at its end."""

    def apply(v, x):
        h = jax.nn.relu(jnp.tensordot(x, v["a"], 1))
        return h.reshape(h.shape[0], -1) @ v["b"]

    variables, x = {"a": networks.data(3, 6), "b": networks.data(24, 2)}, networks.data(5, 2, 2, 3)
    graph = alignment.trace(apply, variables, x)
    wide = transport(graph, {"a": rectangular(jnp.eye(9, 6), jnp.eye(6, 9))}, variables)
    assert wide["b"].shape == (4 * 9, 2)
    chex.assert_trees_all_close(apply(wide, x), apply(variables, x), atol=1e-5)


def test_padding_units_keeps_the_function_through_a_concatenation():
    """The second branch starts after the first one, wherever that now ends."""
    net = networks.network("concatenation")
    wide = transport(net.graph, {"left": rectangular(jnp.eye(8, 6), jnp.eye(6, 8))}, net.variables)
    assert wide["out"]["kernel"].shape == (12, 3)
    chex.assert_trees_all_close(net.apply(wide, net.inputs), net.apply(net.variables, net.inputs), atol=1e-5)


def test_transport_under_jit_and_vmap_over_the_maps():
    net = networks.network("mlp")
    stack = np.stack([np.eye(8, dtype=np.float32)[np.roll(np.arange(8), k)] for k in range(3)])

    def apply(push):
        return transport(net.graph, {"first": orthogonal(push)}, net.variables)

    together = jax.jit(jax.vmap(apply))(stack)
    for k in range(3):
        chex.assert_trees_all_close(jax.tree.map(lambda x, k=k: x[k], together), apply(stack[k]), atol=1e-6)


def test_gradient_with_respect_to_maps_and_variables():
    """Directional finite differences, in a network with products, segments, both roles and vectors."""
    net = networks.network("fused_attention")
    start = (elements(net.graph), net.variables)
    direction = jax.tree.map(lambda x: np.random.default_rng(4).standard_normal(x.shape).astype(np.float32), start)

    def total(maps, variables):
        leaves = jax.tree.leaves(transport(net.graph, maps, variables))
        return sum((k % 3 + 1.0) * jnp.sum(jnp.sin(leaf)) for k, leaf in enumerate(leaves))

    gradients, value = jax.jit(jax.grad(total, argnums=(0, 1))), jax.jit(total)

    def moved(t):
        return value(*jax.tree.map(lambda x, d: np.asarray(x) + np.float32(t) * d, start, direction))

    found = gradients(*start)
    chex.assert_tree_all_finite(found)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(found))
    slope = sum(float(jnp.vdot(g, d)) for g, d in zip(jax.tree.leaves(found), jax.tree.leaves(direction), strict=True))
    step = 1e-2
    assert (moved(step) - moved(-step)) / (2 * step) == pytest.approx(slope, rel=2e-2, abs=1e-2)


# ------------------------------------------------------------------------------------------------------------- dtypes


def test_half_precision_leaves_are_computed_in_float32_and_rounded_once():
    """second/kernel carries two nodes: rounding after each of them would show."""
    net = networks.network("linear_mlp")
    maps = elements(net.graph)
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), net.variables)
    singles = jax.tree.map(lambda x: x.astype(jnp.float32), halves)
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), transport(net.graph, maps, singles))
    chex.assert_trees_all_equal(transport(net.graph, maps, halves), expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32])
def test_the_dtype_of_the_maps_does_not_lower_the_precision(dtype):
    """A permutation is exact in any dtype, so the result must be too: the work is done in float32."""
    net = networks.network("mlp")
    m = permutation(jnp.roll(jnp.arange(8), 1))
    low = jax.tree.map(lambda x: x.astype(dtype), m)
    chex.assert_trees_all_equal(
        transport(net.graph, {"first": low}, net.variables), transport(net.graph, {"first": m}, net.variables)
    )


def test_maps_may_be_numpy_arrays():
    net = networks.network("mlp")
    m = NodeMap(np.eye(8)[::-1], np.eye(8)[::-1].T)
    expected = transport(net.graph, {"first": permutation(jnp.arange(8)[::-1])}, net.variables)
    chex.assert_trees_all_equal(transport(net.graph, {"first": m}, net.variables), expected)


def test_integer_leaves_are_untouched():
    def apply(v, x):
        return jnp.tanh(x @ v["a"]) @ v["b"] * v["count"].astype(jnp.float32)

    variables = {"a": networks.data(4, 5), "b": networks.data(5, 3), "count": jnp.array(3), "unused": jnp.arange(5)}
    graph = alignment.trace(apply, variables, networks.data(2, 4))
    moved = transport(graph, elements(graph), variables)
    for name in ("count", "unused"):
        assert moved[name].dtype == jnp.int32
        chex.assert_trees_all_equal(moved[name], variables[name])


# ------------------------------------------------------------------------------------------------------------- errors


def test_errors_name_what_was_got_and_what_was_expected():
    net = networks.network("mlp")
    with pytest.raises(ValueError, match="unknown node 'frist': the nearest is 'first', expected one of first, second"):
        transport(net.graph, {"frist": identity(8)}, net.variables)
    with pytest.raises(ValueError, match="'first' takes 7 units, the node has 8"):
        transport(net.graph, {"first": identity(7)}, net.variables)
    with pytest.raises(ValueError, match="the map of 'first' must be a NodeMap, got tuple"):
        transport(net.graph, {"first": tuple(identity(8))}, net.variables)


@pytest.mark.parametrize("copies", [(), (3,), (2, 3), (3, 2, 1)])
def test_maps_with_the_wrong_copies_are_refused(copies):
    net = networks.network("towers")
    with pytest.raises(ValueError, match=r"'layers/into#2' has copies .*, the node \(3, 2\)"):
        transport(net.graph, {"layers/into#2": identity(4, copies)}, net.variables)
    with pytest.raises(ValueError, match=r"'embed' has copies \(2,\), the node \(\)"):
        transport(net.graph, {"embed": identity(7, (2,))}, net.variables)


def test_a_pull_of_the_wrong_shape_is_named():
    """NodeMap can be built without `rectangular`, so transport must look at both matrices."""
    net = networks.network("mlp")
    with pytest.raises(ValueError, match="first"):
        transport(net.graph, {"first": NodeMap(jnp.eye(8), jnp.eye(7))}, net.variables)


def test_variables_of_another_structure_are_refused_with_path_and_shapes():
    net = networks.network("mlp")
    wrong = {**net.variables, "second": {"kernel": jnp.zeros((8, 6)), "bias": net.variables["second"]["bias"]}}
    with pytest.raises(ValueError, match=r"'second/kernel': got \(8, 6\), traced with \(8, 7\)"):
        transport(net.graph, {}, wrong)
    missing = {"first": net.variables["first"], "out": net.variables["out"]}
    with pytest.raises(ValueError, match=r"'second/(bias|kernel)': got no such leaf, traced with \("):
        transport(net.graph, {}, missing)
    with pytest.raises(ValueError, match=r"'extra': got \(2,\), traced with no such leaf"):
        transport(net.graph, {}, {**net.variables, "extra": jnp.zeros(2)})


def test_a_joint_node_keeps_the_share_of_its_intervals():
    """Its units stand on both sides of a padded shortcut, half of them on each."""
    net, node = networks.network("option_a"), "params/block3/conv2"
    n = net.graph.nodes[node].size
    push = np.concatenate([np.eye(n), np.eye(n)], dtype=np.float32)
    wide = transport(net.graph, {node: rectangular(push, push.T / 2)}, net.variables)
    (axis,), kernel = net.graph.touching(node)[f"{node}/kernel"], wide["params"]["block3"]["conv2"]["kernel"]
    old = np.moveaxis(np.asarray(net.variables["params"]["block3"]["conv2"]["kernel"]), axis, 0)
    label = net.graph.axes[f"{node}/kernel"][axis]
    (mine,) = [part for part in label.parts if getattr(part.label, "node", None) == node]
    units = np.concatenate([old[a:b] for a, b in mine.intervals])
    new = np.moveaxis(np.asarray(kernel), axis, 0)
    assert len(new) == len(old) + n
    (a, b), (c, d) = mine.intervals
    assert b - a == d - c
    np.testing.assert_array_equal(new[a : a + n], units)
    np.testing.assert_array_equal(new[len(new) - n :], units)


# ------------------------------------------------------------------------------------------------------- discrepancy


def test_discrepancy_is_relative():
    net = networks.network("mlp")
    scale = NodeMap(jnp.eye(7) * 2, jnp.eye(7))  # doubles the second hidden layer without telling its consumer
    no_bias = {**net.variables, "out": {**net.variables["out"], "bias": jnp.zeros(3)}}
    assert alignment.discrepancy(net.apply, net.graph, {"second": scale}, no_bias, net.inputs) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("bad", [0, 1])
def test_nan_in_any_output_is_infinitely_far(bad):
    """Wherever it stands among the outputs: Python's max forgets a NaN that does not come first."""
    net = networks.network("mlp")

    def apply(v, x):
        y = net.apply(v, x)
        broken = jnp.sqrt(-1 - jnp.abs(y))
        return (broken, y) if bad == 0 else (y, broken)

    graph = alignment.trace(apply, net.variables, net.inputs)
    assert alignment.discrepancy(apply, graph, {}, net.variables, net.inputs) == np.inf


def test_random_elements_belong_to_their_group():
    for group in ("permutation", "scale", "orthogonal", "linear"):
        m = alignment.verification.random_element(alignment.Node("n", 6, group, ("a", "b"), (3, 2)), KEY)
        assert m.push.shape == m.pull.shape == (3, 2, 6, 6)
        for push, pull in zip(m.push.reshape(-1, 6, 6), m.pull.reshape(-1, 6, 6), strict=True):
            np.testing.assert_allclose(push @ pull, np.eye(6), atol=1e-5)
            assert np.linalg.cond(push) < 5  # factors are within [0.5, 2]
            nonzero = push != 0
            assert (nonzero.sum(0) == 1).all() == (group in ("permutation", "scale"))
            assert np.allclose(push @ push.T, np.eye(6), atol=1e-5) == (group in ("permutation", "orthogonal"))
        every = m.push.reshape(6, -1)
        assert len(np.unique(every.round(3), axis=0)) == 6, "copies of a node move on their own"
        again = alignment.verification.random_element(alignment.Node("n", 6, group), KEY)
        assert again.push.shape == (6, 6)
