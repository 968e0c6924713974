"""Tensors taken apart into blocks, and permutations of many nodes at once, against loops written by hand."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import Cases, Fixed, Graph, Node, NodeAxis, Part, Product, Segments
from alignment.blocks import axis_of, each_block
from alignment.permutations import after, blocks, permuted, unmoved
from tests.alignment import networks

A, B, C = (NodeAxis(name, size, "out") for name, size in (("a", 2), ("b", 3), ("c", 4)))


def counted(*shape):
    return np.arange(np.prod(shape)).reshape(shape)


def visited(labels, x):
    """The blocks of an array, each as its labels and its values; nothing is changed."""
    found = []
    same = each_block(labels, x, lambda bare, block: found.append((list(bare), np.array(block))) or block)
    np.testing.assert_array_equal(same, x)
    return found


def doubled(node):
    """Every unit of a node twice, next to itself."""

    def change(labels, block):
        for d, label in enumerate(labels):
            if isinstance(label, NodeAxis) and label.node == node:
                block = np.repeat(block, 2, d)
        return block

    return change


# ----------------------------------------------------------------------------------------------------------- each block


def test_a_product_becomes_axes_and_an_axis_again():
    x = counted(5, 6)
    ((labels, block),) = visited([Fixed(5), Product((A, B))], x)
    assert labels == [Fixed(5), A, B]
    np.testing.assert_array_equal(block, x.reshape(5, 2, 3))
    wide = each_block([Fixed(5), Product((A, B))], x, doubled("b"))
    np.testing.assert_array_equal(wide, np.repeat(x, 2, 1))  # the inner factor: at each place of the outer one
    wide = each_block([Fixed(5), Product((A, B))], x, doubled("a"))
    np.testing.assert_array_equal(wide, np.repeat(x.reshape(5, 2, 3), 2, 1).reshape(5, 12))


def test_segments_are_changed_apart_and_laid_end_to_end_again():
    label = Segments((Part(A, ((1, 3),)), Part(B, ((3, 6),)), Part(Fixed(1), ((0, 1),))))
    x = counted(6, 2)
    found = {str(labels[0]): block for labels, block in visited([label, Fixed(2)], x)}
    np.testing.assert_array_equal(found["a:out"], x[1:3])
    np.testing.assert_array_equal(found["b:out"], x[3:6])
    np.testing.assert_array_equal(found["fixed 1"], x[:1])
    wide = each_block([label, Fixed(2)], x, doubled("a"))
    np.testing.assert_array_equal(wide, x[[0, 1, 1, 2, 2, 3, 4, 5]])  # the next part moves on


def test_a_node_of_several_intervals_is_one_block_and_goes_back_into_them():
    label = Segments((Part(C, ((0, 1), (4, 7))), Part(B, ((1, 4),))))
    x = counted(7)
    found = {labels[0]: block for labels, block in visited([label], x)}
    np.testing.assert_array_equal(found[C], [0, 4, 5, 6])
    turned = each_block([label], x, lambda labels, block: block[::-1] if labels[0] == C else block)
    np.testing.assert_array_equal(turned, [6, 1, 2, 3, 5, 4, 0])
    wide = each_block([label], x, doubled("c"))  # each interval keeps its share: a quarter and three quarters of eight
    np.testing.assert_array_equal(wide, [0, 0, 1, 2, 3, 4, 4, 5, 5, 6, 6])
    np.testing.assert_array_equal(each_block([label], x, doubled("b")), [0, 1, 1, 2, 2, 3, 3, 4, 5, 6])


def test_segments_on_two_axes_give_a_block_for_each_pair():
    label = Segments((Part(A, ((0, 2),)), Part(B, ((2, 5),))))
    x = counted(5, 5)
    found = {(str(one), str(two)): block for (one, two), block in visited([label, label], x)}
    for (one, rows), (two, columns) in itertools.product((("a", slice(0, 2)), ("b", slice(2, 5))), repeat=2):
        np.testing.assert_array_equal(found[f"{one}:out", f"{two}:out"], x[rows, columns])


def test_products_inside_segments_and_segments_inside_products():
    inside = Segments((Part(Product((A, B)), ((0, 6),)), Part(A, ((6, 8),))))
    assert [labels for labels, _ in visited([inside], counted(8))] == [[A, B], [A]]
    outside = Product((A, Segments((Part(B, ((0, 3),)), Part(C, ((3, 7),))))))
    x = counted(14)
    found = {str(labels[1]): block for labels, block in visited([outside], x)}
    np.testing.assert_array_equal(found["b:out"], x.reshape(2, 7)[:, :3])
    np.testing.assert_array_equal(found["c:out"], x.reshape(2, 7)[:, 3:])


def test_cases_are_changed_place_by_place():
    """Queries, keys and values stacked: another node at each place of the axis of three."""
    first, second = (NodeAxis(name, 4, "in") for name in ("p", "q"))
    labels = [Fixed(3, "stack"), Cases("stack", (first, second, first)), A]
    x = counted(3, 4, 2)
    found = visited(labels, x)
    assert [bare for bare, _ in found] == [[Fixed(1), label, A] for label in (first, second, first)]
    for place, (_, block) in enumerate(found):
        np.testing.assert_array_equal(block, x[[place]])
    turned = each_block(labels, x, lambda bare, block: block[:, ::-1] if bare[1] == first else block)
    np.testing.assert_array_equal(turned, np.stack([x[0, ::-1], x[1], x[2, ::-1]]))
    np.testing.assert_array_equal(each_block(labels, x, doubled("a")), np.repeat(x, 2, 2))
    with pytest.raises(ValueError, match=r"the parts of \{p:in or q:in or p:in\} would have different widths"):
        each_block(labels, x, doubled("p"))  # the places of q stay as they are


def test_the_index_of_cases_may_be_a_factor_of_another_axis_or_of_their_own():
    cases = Cases("stack", (B, NodeAxis("d", 3, "out")))
    for labels, shape in (
        ([Product((Fixed(2, "stack"), A)), cases], (4, 3)),
        ([Product((A, Fixed(2, "stack"), cases))], (12,)),
    ):
        x = counted(*shape)
        found = visited(labels, x)
        assert [[str(label) for label in bare if isinstance(label, NodeAxis)] for bare, _ in found] == [
            ["a:out", "b:out"],
            ["a:out", "d:out"],
        ]
        opened = x.reshape(2, 2, 3) if len(labels) == 2 else x.reshape(2, 2, 3).swapaxes(0, 1)
        for place, (_, block) in enumerate(found):
            np.testing.assert_array_equal(block.reshape(2, 3), opened[place])


def test_parts_that_would_differ_in_another_width_are_refused():
    """A node of one segment widened along another axis of the same array."""
    label = Segments((Part(A, ((0, 2),)), Part(B, ((2, 5),))))

    def change(labels, block):
        return np.repeat(block, 2, 1) if labels[0] == A else block

    with pytest.raises(ValueError, match=r"the parts of .* would have different widths"):
        each_block([label, C], counted(5, 4), change)


def test_arrays_of_jax_stay_arrays_of_jax_and_numpy_stays_numpy():
    label = Segments((Part(A, ((0, 2),)), Part(B, ((2, 5),))))
    for make in (np.asarray, jnp.asarray):
        x = make(np.arange(5.0, dtype=np.float32))
        changed = each_block([label], x, lambda labels, block: block + block)
        assert type(changed) is type(x)
        np.testing.assert_array_equal(changed, 2 * np.arange(5.0))


def test_an_axis_is_found_by_the_name_of_its_node_or_its_own():
    labels = [Fixed(3), Fixed(5, "steps"), A]
    assert [axis_of(labels, name) for name in ("steps", "a")] == [1, 2]
    with pytest.raises(ValueError, match="'b'"):
        axis_of(labels, "b")


# --------------------------------------------------------------------------------------------------------- permutations


def orders_of(graph, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.permuted(order, axis=-1) for name, order in unmoved(graph).items()}


def graph_of(*nodes, **axes):
    """A graph of nothing but nodes and labels."""
    shapes = {path: tuple(label.size for label in labels) for path, labels in axes.items()}
    return Graph({n.name: n for n in nodes}, axes, (), {}, (), shapes)


NESTED = graph_of(
    Node("heads", 3, "permutation", ("layers",), (2,)),
    Node("units", 4, "permutation", ("layers", "heads"), (2, 3)),
    Node("stream", 5, "permutation"),
    weight=(
        Fixed(2, "layers"),
        Product((NodeAxis("heads", 3, "out"), NodeAxis("units", 4, "out"))),
        NodeAxis("stream", 5, "in"),
    ),
    flat=(Product((Fixed(2, "layers"), NodeAxis("units", 4, "in"), NodeAxis("heads", 3, "in"))),),
)


def test_permuting_nested_nodes_by_hand():
    """New head i is old head heads[i], with its units in the order that it had at its old place."""
    orders = orders_of(NESTED, 0)
    x = counted(2, 3, 4, 5)
    expected = np.empty_like(x)
    for layer, head, unit, k in np.ndindex(x.shape):
        old = orders["heads"][layer, head]
        expected[layer, head, unit, k] = x[layer, old, orders["units"][layer, old, unit], orders["stream"][k]]
    found = permuted(NESTED, "weight", x.reshape(2, 12, 5), orders)
    np.testing.assert_array_equal(found, expected.reshape(2, 12, 5))
    flat = permuted(NESTED, "flat", x[..., 0].swapaxes(1, 2).reshape(-1), orders)
    still = {**orders, "stream": np.arange(5)}
    unshuffled = permuted(NESTED, "weight", x.reshape(2, 12, 5), still).reshape(2, 3, 4, 5)
    np.testing.assert_array_equal(flat.reshape(2, 4, 3), unshuffled[..., 0].swapaxes(1, 2))


def test_orders_and_then_a_move_are_the_orders_after_the_move():
    """The composition law, with heads permuted and the units inside the heads permuted, in each layer."""
    x = counted(2, 12, 5)
    for seed in range(5):
        orders, move = orders_of(NESTED, 2 * seed), orders_of(NESTED, 2 * seed + 1)
        stepwise = permuted(NESTED, "weight", permuted(NESTED, "weight", x, orders), move)
        np.testing.assert_array_equal(permuted(NESTED, "weight", x, after(NESTED, orders, move)), stepwise)
        inside = {"units": move["units"]}  # a move of some nodes only
        stepwise = permuted(NESTED, "weight", permuted(NESTED, "weight", x, orders), inside)
        composed = after(NESTED, orders, inside)
        np.testing.assert_array_equal(permuted(NESTED, "weight", x, composed), stepwise)
        assert (composed["heads"] == orders["heads"]).all()


def test_after_is_associative_and_has_a_neutral_element():
    one, two, three = (orders_of(NESTED, seed) for seed in range(3))
    left, right = after(NESTED, after(NESTED, one, two), three), after(NESTED, one, after(NESTED, two, three))
    for name in NESTED.nodes:
        np.testing.assert_array_equal(left[name], right[name])
        np.testing.assert_array_equal(after(NESTED, one, unmoved(NESTED))[name], one[name])
        np.testing.assert_array_equal(after(NESTED, unmoved(NESTED), one)[name], one[name])


def test_what_is_undone_by_hand_is_undone_by_after():
    net = networks.network("towers")
    _, index = networks.shuffle(net.graph, net.variables, 3)
    for name, order in after(net.graph, index, networks.undone(net.graph, index)).items():
        np.testing.assert_array_equal(order, unmoved(net.graph)[name])


def test_permuting_on_the_host_is_transport():
    for name in ("towers", "fused_attention", "option_a"):
        net = networks.network(name)
        moved, index = networks.shuffle(net.graph, net.variables, 4)
        for path, x in networks.flatten(net.variables).items():
            np.testing.assert_array_equal(permuted(net.graph, path, np.asarray(x), index), networks.flatten(moved)[path])


def test_blocks_list_what_a_tensor_is_made_of():
    net = networks.network("fused_attention")
    labels = [list(map(str, bare)) for bare, _ in blocks(net.graph, "qkv", np.asarray(net.variables["qkv"]))]
    heads = "qkv#1:out"
    assert labels == [["embed:in", heads, inside] for inside in ("qkv#2:out", "qkv#2:in", "qkv#3:out")]


def test_the_identity_of_every_node_has_its_copies():
    assert {name: order.shape for name, order in unmoved(NESTED).items()} == {
        "heads": (2, 3),
        "units": (2, 3, 4),
        "stream": (5,),
    }
    assert alignment.permutation(unmoved(NESTED)["units"]).push.shape == (2, 3, 4, 4)
