"""Reading features out of a forward pass."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import Fixed, Node, NodeAxis, Part, Place, Product, Segments
from alignment.tracing.views import Views
from tests.alignment import networks


def features(net, variables=None, x=None, **options):
    """The features of a network's nodes."""
    found = alignment.capture(net.apply, net.graph, variables or net.variables, net.inputs if x is None else x, **options)
    return jax.tree.map(np.asarray, found.nodes)


def test_features_are_the_hidden_activations_computed_by_hand():
    net = networks.network("mlp")
    first, second, x = net.variables["first"], net.variables["second"], np.asarray(net.inputs)
    h1 = np.maximum(x @ np.asarray(first["kernel"]) + np.asarray(first["bias"]), 0)
    h2 = np.maximum(h1 @ np.asarray(second["kernel"]) + np.asarray(second["bias"]), 0)
    found = features(net)
    chex.assert_trees_all_close(found, {"first": h1, "second": h2}, atol=1e-6)


def test_every_position_of_an_image_is_a_sample():
    net = networks.network("resnet")
    found = features(net)
    sides = {"stem": 8, "block1/conv1": 8, "block2/conv1": 4, "block2/conv2": 4, "block3/conv1": 2, "block3/conv2": 2}
    expected = {f"params/{n}": (3 * s * s, net.nodes[f"params/{n}"][0]) for n, s in sides.items()}
    assert {name: x.shape for name, x in found.items()} == expected
    assert all(x.min() >= 0 for x in found.values())  # the taps stand behind the ReLU


def test_a_node_of_two_intervals_is_read_from_both():
    """What the head sees of it explains how the output changes when the head is told to ignore it."""
    net = networks.network("option_a")
    last = features(net)["params/block3/conv2"]
    assert last.shape == (3 * 2 * 2, 6)
    pooled = last.reshape(3, -1, 6).mean(1)
    head, rows = np.asarray(net.variables["params"]["head"]["kernel"]), [0, 1, 2, 11, 12, 13]
    cut = jax.tree.map(lambda x: x, net.variables)
    cut["params"]["head"]["kernel"] = np.where(np.isin(np.arange(14), rows)[:, None], 0, head)
    difference = np.asarray(net.apply(net.variables, net.inputs)) - np.asarray(net.apply(cut, net.inputs))
    np.testing.assert_allclose(difference, pooled @ head[rows], atol=1e-5)


def test_copies_of_an_indexed_node_stand_in_front():
    """Towers and their units in each of three scanned layers, against the layers run one by one."""
    net = networks.network("towers")
    found = features(net)
    assert {name: x.shape for name, x in found.items()} == {"embed": (3 * 16, 7), "layers/into#2": (3, 2, 16, 4)}
    v = jax.tree.map(np.asarray, net.variables)
    x = np.asarray(net.inputs) @ v["embed"]
    for k in range(3):
        w = {name: leaf[k] for name, leaf in v["layers"].items()}
        h = np.maximum(np.einsum("bi,ihd->hbd", x, w["into"]) + w["with_bias"][:, None], 0)
        np.testing.assert_allclose(found["layers/into#2"][k], h, atol=1e-5)
        x = x + np.einsum("hbd,hdi->bi", h, w["out"])
        np.testing.assert_allclose(found["embed"].reshape(3, 16, 7)[k], x, atol=1e-5)


def test_features_inside_heads_of_a_fused_kernel_by_hand():
    net = networks.network("fused_attention")
    v, x = jax.tree.map(np.asarray, net.variables), np.asarray(net.inputs)
    found = features(net)
    x = x @ v["embed"]
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * v["scale"]
    queries = (x @ v["qkv"][:, :6]).reshape(3 * 6, 2, 3)
    np.testing.assert_allclose(found["qkv#2"], queries.swapaxes(0, 1), atol=1e-4)
    assert found["qkv#3"].shape == (2, 3 * 6, 4)
    assert found["qkv#1"].shape == (3 * 6 * 6, 2)  # attention weights: every pair of positions is a sample


def test_the_batch_size_may_differ_from_the_traced_one():
    net = networks.network("mlp")
    x = np.asarray(networks.data(3, 5))
    found = features(net, x=x)
    each = [features(net, x=x[i : i + 1]) for i in range(3)]
    chex.assert_trees_all_close(found, jax.tree.map(lambda *xs: np.concatenate(xs), *each), atol=1e-6)
    for name in ("towers", "fused_attention"):  # copies in front, heads inside a product
        net = networks.network(name)
        twice = features(net, x=np.concatenate([np.asarray(net.inputs)] * 2))
        assert {n: f.shape[:-2] for n, f in twice.items()} == {n: f.shape[:-2] for n, f in features(net).items()}
        assert all(twice[n].shape[-2] == 2 * f.shape[-2] for n, f in features(net).items())


@pytest.mark.parametrize(
    "name", ["option_a", "vgg", "concatenation", "towers", "attention", "fused_attention", "grouped_queries"]
)
def test_features_transform_with_their_node(name):
    """What transport promises, one node at a time: the features of moved variables are push @ the features, copy by copy.

    A tap on keys instead of queries would transform by the inverse transpose; where the index of a node moves, whole copies do.
    """
    net = networks.network(name)
    still = {n.name: alignment.identity(n.size, n.copies) for n in net.graph.nodes.values()}
    before = features(net)
    for node, m in networks.elements(net.graph, 1).items():
        after = features(net, alignment.transport(net.graph, still | {node: m}, net.variables))
        for other, x in before.items():
            expected = x @ m.push.swapaxes(-1, -2) if other == node else x
            index = net.graph.nodes[other].index
            if node in index and net.graph.nodes[node].group == "permutation":
                *outer, axis = range(index.index(node) + 1)
                assert not outer
                expected = np.take(x, m.push.argmax(-1), axis)
            elif node in index:
                continue  # towers may be scaled as well: their units then are too
            np.testing.assert_allclose(after[other], expected, atol=2e-4, err_msg=f"{other} after {node}")


def test_capture_is_traceable():
    net = networks.network("concatenation")
    jitted = jax.jit(lambda v, x: alignment.capture(net.apply, net.graph, v, x).nodes)(net.variables, net.inputs)
    chex.assert_trees_all_close(features(net), jax.tree.map(np.asarray, jitted), atol=1e-6)


def test_of_two_sides_of_a_contraction_the_one_that_can_be_read_carries_the_features():
    """Queries stand in groups beside their insides, keys do not: what is inside a head is read from the keys."""
    net = networks.network("grouped_queries")
    assert set(net.graph.taps) == {"query#2", "query#3", "value"}
    assert net.graph.axes["key"][2].role == "out" and net.graph.axes["query"][3].role == "in"
    keys = np.einsum("nti,ihd->hntd", np.asarray(net.inputs), np.asarray(net.variables["key"]))
    np.testing.assert_allclose(features(net)["query#3"], keys.reshape(2, 18, 4), atol=1e-5)


# ---------------------------------------------------------------------------------------------------- asking for a part


def test_only_what_is_asked_for_is_returned():
    net = networks.network("mlp")
    every = features(net)
    found = alignment.capture(net.apply, net.graph, net.variables, net.inputs, nodes=["second"], sites=["out/kernel"])
    assert (set(found.nodes), set(found.sites)) == ({"second"}, {"out/kernel"})
    chex.assert_trees_all_close(np.asarray(found.nodes["second"]), every["second"], atol=1e-6)
    chex.assert_trees_all_close(np.asarray(found.sites["out/kernel"].inputs), every["second"], atol=1e-6)
    one = alignment.capture(net.apply, net.graph, net.variables, net.inputs, nodes="second", sites="out/kernel")
    chex.assert_trees_all_equal(one, found)
    nothing = alignment.capture(net.apply, net.graph, net.variables, net.inputs, nodes=(), sites=())
    assert nothing == alignment.Captured({}, {}, {})
    assert set(alignment.capture(net.apply, net.graph, net.variables, net.inputs).sites) == set()


def test_what_is_not_asked_for_is_not_computed():
    """The layers behind the last node are cut away."""
    net = networks.network("mlp")

    def products(*nodes):
        read = jax.jit(lambda v, x: alignment.capture(net.apply, net.graph, v, x, nodes=nodes).nodes)
        return read.lower(net.variables, net.inputs).compile().as_text().count(" dot(")

    assert [products("first"), products("first", "second")] == [1, 2]


def test_names_that_do_not_exist_are_refused_with_those_that_do():
    net = networks.network("mlp")
    with pytest.raises(ValueError, match="node 'frist' is not in the graph; there are taps for first, second"):
        features(net, nodes=["frist"])
    with pytest.raises(ValueError, match="no site named 'out'; the graph has first/kernel, second/kernel, out/kernel"):
        features(net, sites=["out"])
    net = networks.network("towers")
    with pytest.raises(ValueError, match="node 'layers/into#1' has no tap; there are taps for embed, layers/into#2"):
        features(net, nodes=["layers/into#1"])


def test_another_function_is_refused():
    net, other = networks.network("mlp"), networks.network("linear_mlp")
    with pytest.raises(ValueError, match=r"'first'.*trace and what measures must get the same function"):
        alignment.capture(other.apply, net.graph, net.variables, net.inputs)
    with pytest.raises(
        ValueError, match="trace and what measures must get the same function"
    ):  # jitted or not is another function
        alignment.capture(other.apply.__wrapped__, other.graph, net.variables, net.inputs)


def test_inputs_of_another_dtype_than_was_traced_are_named():
    net = networks.network("mlp")
    apply = lambda v, x: net.apply(v, jnp.asarray(x, jnp.float32))  # noqa: E731
    graph = alignment.trace(apply, net.variables, net.inputs)
    with pytest.raises(ValueError, match=r"^the graph was traced with inputs of float32, got uint8: cast them, or trace with"):
        alignment.capture(apply, graph, net.variables, np.zeros(net.inputs.shape, np.uint8))
    double = alignment.capture(apply, graph, net.variables, np.asarray(net.inputs, np.float64))  # which JAX takes as float32
    chex.assert_trees_all_close(double.nodes, features(net), atol=1e-6)


# --------------------------------------------------------------------------------------------------------------- views


A, B = NodeAxis("a", 3, "out"), NodeAxis("b", 4, "out")
STEPS = Fixed(5, "steps")
INSIDE = Node("a", 3, "permutation", ("b",), (4,))


def tap(node, labels, shape, loops=()):
    """Samples per copy, the place of the units and those of the index, or None."""
    found = Views(labels, shape, loops).tap(node, (0,), 0)
    return found and (found[0], found[1].units, found[1].index)


def test_a_node_is_read_where_all_other_axes_are_samples():
    node = Node("a", 3, "permutation")
    assert tap(node, (Fixed(8), A, Fixed(5)), (8, 3, 5)) == (40, Place(1, (), (3,), 0), ())
    assert tap(node, (Fixed(8), A, B), (8, 3, 4)) is None  # samples would be other units in another model
    assert tap(node, (Fixed(8), Product((A, B))), (8, 12)) is None
    assert tap(node, (Fixed(8), NodeAxis("a", 3, "in")), (8, 3)) is None  # transforms by the inverse transpose
    assert tap(node, (Fixed(8), B), (8, 4)) is None


def test_a_node_that_stands_twice_is_not_read():
    """An outer product: its samples would be the units themselves, in another order in another model."""
    node = Node("a", 3, "permutation")
    assert tap(node, (Fixed(8), A, A), (8, 3, 3)) is None
    assert tap(node, (Fixed(8), A, NodeAxis("a", 3, "in")), (8, 3, 3)) is None
    assert tap(node, (Fixed(8), Product((A, A))), (8, 9)) is None


def test_a_factor_is_read_from_its_place_in_the_product():
    node = Node("a", 3, "permutation")
    place = Place(1, (), (5, 3), 1)
    found = tap(node, (Fixed(8), Product((Fixed(5, "steps"), A))), (8, 15))
    assert found == (8, place, ())
    assert tap(node, (Product((Fixed(8), A)),), (24,))[1] == Place(0, (), (-1, 3), 1)  # the batch may be another


def test_part_of_an_axis_is_read_without_the_rest():
    node = Node("a", 3, "permutation")
    label = Segments((Part(A, ((0, 1), (5, 7))), Part(B, ((1, 5),))))
    assert tap(node, (Fixed(8), label), (8, 7)) == (8, Place(1, ((0, 1), (5, 7)), (3,), 0), ())
    assert tap(node, (Fixed(8), label, B), (8, 7, 4)) is None


def test_an_indexed_node_is_only_read_where_its_index_is():
    here = Place(2, (), (4,), 0)
    assert tap(INSIDE, (Fixed(8), A, B), (8, 3, 4)) == (8, Place(1, (), (3,), 0), (here,))
    assert tap(INSIDE, (Fixed(8), A, NodeAxis("b", 4, "in")), (8, 3, 4))[2] == (here,)
    assert tap(INSIDE, (Fixed(8), Product((B, A))), (8, 12))[1:] == (Place(1, (), (4, 3), 1), (Place(1, (), (4, 3), 0),))
    assert tap(INSIDE, (Fixed(8), A), (8, 3)) is None
    assert tap(INSIDE, (Fixed(8), A, B, B), (8, 3, 4, 4)) is None  # which of the two?
    assert tap(INSIDE, (Fixed(8), A, B, NodeAxis("c", 2, "out")), (8, 3, 4, 2)) is None
    in_part = Segments((Part(Product((B, A)), ((0, 12),)), Part(Fixed(2), ((12, 14),))))
    assert tap(INSIDE, (Fixed(8), in_part), (8, 14))[1:] == (
        Place(1, ((0, 12),), (4, 3), 1),
        (Place(1, ((0, 12),), (4, 3), 0),),
    )
    elsewhere = Segments((Part(B, ((0, 4),)), Part(Fixed(2), ((4, 6),))))
    assert tap(INSIDE, (Fixed(8), A, elsewhere), (8, 3, 6)) is None  # not at every place of the units' axis


def test_an_index_may_be_a_loop_around_the_equation():
    node = Node("a", 3, "permutation", ("steps", "b"), (5, 4))
    labels, shape = (Fixed(8), B, A), (8, 4, 3)
    assert tap(node, labels, shape, [Fixed(2), STEPS])[2] == (1, Place(1, (), (4,), 0))
    assert tap(node, labels, shape, [Fixed(2), Fixed(5)]) is None
    assert tap(node, (STEPS, *labels), (5, *shape))[2] == (Place(0, (), (5,), 0), Place(2, (), (4,), 0))
    assert tap(node, (STEPS, *labels), (5, *shape), [STEPS]) is None  # twice
