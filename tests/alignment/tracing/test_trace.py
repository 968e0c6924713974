"""The symmetry graph against what theory says: too few ties break `verify`, too many break the tables."""

import dataclasses
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import ScopeParamShapeError
from jax.experimental import io_callback

import alignment
from alignment import Fixed, NodeAxis, Part, Product, Segments
from alignment.primitives import RULES
from alignment.unification.terms import Group
from tests.alignment import networks

KEY = jax.random.key(0)
X = networks.data(8, 4)


def weights(**shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    return networks.fill({name: networks.Shape(shape, jnp.float32) for name, shape in shapes.items()}, 0)


def out(node: str, size: int) -> NodeAxis:
    return NodeAxis(node, size, "out")


def in_(node: str, size: int) -> NodeAxis:
    return NodeAxis(node, size, "in")


# ------------------------------------------------------------------------------------------------- the tables of theory


@pytest.mark.parametrize("name", networks.ALL)
def test_nodes_sizes_and_groups_are_those_of_theory(name):
    net = networks.network(name)
    assert networks.table(net.graph) == dict(net.nodes)


@pytest.mark.parametrize("name", networks.ALL)
def test_a_random_group_element_leaves_the_function_unchanged(name):
    """THE test of the project, all nodes at once."""
    net = networks.network(name)
    assert alignment.verify(net.apply, net.graph, net.variables, net.inputs, key=KEY) < 1e-5


@pytest.mark.parametrize("name", networks.ALL)
def test_each_node_alone_leaves_the_function_unchanged(name):
    """One node at a time: nodes that must move together, taken for two, would cancel when moved at once."""
    net = networks.network(name)
    found = alignment.verify_each(net.apply, net.graph, net.variables, net.inputs, key=KEY)
    assert found.keys() == net.graph.nodes.keys()
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("name", networks.ALL)
def test_every_label_has_the_size_of_its_axis_and_every_free_axis_is_listed(name):
    graph = networks.network(name).graph
    for path, labels in graph.axes.items():
        assert tuple(label.size for label in labels) == graph.shapes[path]
    fixed = {(p, d) for p, labels in graph.axes.items() for d, label in enumerate(labels) if isinstance(label, Fixed)}
    assert {(pin.path, pin.axis) for pin in graph.pinned} >= {(p, d) for p, d in fixed if graph.shapes[p][d] > 1}


def test_labels_of_the_mlp():
    expected = {
        "first/kernel": (Fixed(5), out("first", 8)),
        "first/bias": (out("first", 8),),
        "second/kernel": (in_("first", 8), out("second", 7)),
        "second/bias": (out("second", 7),),
        "out/kernel": (in_("second", 7), Fixed(3)),
        "out/bias": (Fixed(3),),
    }
    assert dict(networks.network("mlp").graph.axes) == expected


def test_labels_of_a_flattened_image():
    """Flattening is row-major, positions outermost: the dense kernel's axis is positions x channels."""
    axes = networks.network("vgg").graph.axes["params/hidden/kernel"]
    assert axes == (Product((Fixed(4), in_("params/conv2", 6))), out("params/hidden", 7))


def test_labels_of_a_concatenation():
    parts = (Part(in_("left", 6), ((0, 6),)), Part(in_("right", 4), ((6, 10),)))
    assert networks.network("concatenation").graph.axes["out/kernel"] == (Segments(parts), Fixed(3))


def test_a_zero_padded_shortcut_ties_the_middle_and_joins_both_ends():
    """Stage 3 is [3 | stage 2: 2 + stem 4 + 2 | 3]; the two ends of each padding are one joint node."""
    stem, second, third = "params/stem", "params/block2/conv2", "params/block3/conv2"
    axes = networks.network("option_a").graph.axes

    def parts(label):
        return {(p.label.node, p.label.size, p.label.role): p.intervals for p in label.parts}

    assert parts(axes["params/block2/conv2/kernel"][3]) == {(stem, 4, "out"): ((2, 6),), (second, 4, "out"): ((0, 2), (6, 8))}
    assert parts(axes["params/block3/conv1/kernel"][2]) == {(stem, 4, "in"): ((2, 6),), (second, 4, "in"): ((0, 2), (6, 8))}
    assert parts(axes["params/head/kernel"][0]) == {
        (stem, 4, "in"): ((5, 9),),
        (second, 4, "in"): ((3, 5), (9, 11)),
        (third, 6, "in"): ((0, 3), (11, 14)),
    }


def test_a_residual_stream_ties_both_ends_of_its_blocks():
    axes = networks.network("resnet").graph.axes
    stream = "params/block2/conv2"
    assert axes["params/block2/shortcut/kernel"] == (Fixed(1), Fixed(1), in_("params/stem", 4), out(stream, 6))
    assert axes["params/block2/conv2/kernel"] == (Fixed(3), Fixed(3), in_("params/block2/conv1", 6), out(stream, 6))
    assert axes["batch_stats/block2/norm_shortcut/var"] == (out(stream, 6),)
    assert axes["params/block3/conv1/kernel"][2] == in_(stream, 6)


def test_queries_produce_and_keys_consume_their_linear_node():
    """q.k is kept by (g q).(g^-T k): keys carry the in role although they are computed, not consumed."""
    axes = networks.network("attention").graph.axes
    heads, width = "query#1", "query#2"
    assert axes["query"] == (in_("embed", 7), out(heads, 2), out(width, 3))
    assert axes["key"] == (in_("embed", 7), out(heads, 2), in_(width, 3))
    assert axes["value"] == (in_("embed", 7), out(heads, 2), out("value", 4))
    assert axes["mix"] == (in_(heads, 2), in_("value", 4), out("embed", 7))
    assert axes["head"] == (in_("embed", 7), Fixed(3))


def test_a_fused_kernel_is_three_segments_of_heads_times_width():
    axes = networks.network("fused_attention").graph.axes
    heads, width, value = out("qkv#1", 2), "qkv#2", "qkv#3"
    parts = (
        Part(Product((heads, out(width, 3))), ((0, 6),)),
        Part(Product((heads, in_(width, 3))), ((6, 12),)),
        Part(Product((heads, out(value, 4))), ((12, 20),)),
    )
    assert axes["qkv"] == (in_("embed", 7), Segments(parts))
    assert axes["mix"] == (Product((in_("qkv#1", 2), in_(value, 4))), out("embed", 7))


def test_pins_say_why():
    pinned = {(p.path, p.axis): p.reason for p in networks.network("vgg").graph.pinned}
    assert pinned["params/head/kernel", 1] == pinned["params/head/bias", 0] == "output"
    assert pinned["params/conv1/kernel", 2] == "input"
    assert pinned["params/conv2/kernel", 0] == "position under a convolution"
    assert ("params/hidden/kernel", 1) not in pinned


def test_printing_a_graph_names_nodes_roles_and_pins():
    text = str(networks.network("vgg").graph)
    assert "params/hidden/kernel[0] fixed 4 x in" in text
    assert "4 x position under a convolution" in text


def test_printing_a_graph_shows_what_its_nodes_are_inside_of():
    lines = str(networks.network("towers").graph).splitlines()
    (row,) = (k for k, line in enumerate(lines) if line.startswith("layers/into#2"))
    assert lines[row].split()[1:7] == ["3", "x", "2", "x", "4", "scale"]
    assert lines[row + 1].strip().startswith("in each of layers/into[0]")
    assert lines[row + 2].strip().startswith("in each of layers/into#1")


# ------------------------------------------------------------------------------------------- checks that can fail


def relabel(graph, path, axis, label):
    labels = list(graph.axes[path])
    labels[axis] = label
    return dataclasses.replace(graph, axes={**graph.axes, path: tuple(labels)})


@pytest.mark.parametrize(
    ("name", "path", "axis", "label"),
    [
        ("mlp", "out/kernel", 0, Fixed(7)),  # a consumer forgotten
        ("mlp", "second/bias", 0, Fixed(7)),  # a bias forgotten
        ("mlp", "second/kernel", 0, out("first", 8)),  # a role reversed (scales see it)
        ("attention", "key", 2, out("query#2", 3)),  # keys taken for queries
        ("vgg", "params/hidden/kernel", 0, Product((in_("params/conv2", 6), Fixed(4)))),  # channels outermost
        ("resnet", "batch_stats/block1/norm2/mean", 0, out("params/block1/conv1", 4)),  # tied to the wrong node of its size
    ],
)
def test_verify_sees_a_wrong_tie(name, path, axis, label):
    net = networks.network(name)
    wrong = relabel(net.graph, path, axis, label)
    assert alignment.verify(net.apply, wrong, net.variables, net.inputs, key=KEY) > 1e-2


def test_verify_each_names_the_node_that_is_wrong():
    net = networks.network("mlp")
    wrong = relabel(net.graph, "second/bias", 0, Fixed(7))
    found = alignment.verify_each(net.apply, wrong, net.variables, net.inputs, key=KEY)
    assert found["first"] < 1e-5 < 1e-2 < found["second"]


def test_verify_moves_both_of_two_units():
    v, x = {"up": jnp.array([[1.0, -2.0]]), "down": jnp.array([[1.0], [3.0]])}, jnp.ones((1, 1))
    graph = alignment.trace(lambda v, x: jnp.tanh(x @ v["up"]) @ v["down"], v, x)

    def told_apart(v, x):
        return jnp.tanh(x @ v["up"]) * jnp.array([[1.0, 2.0]]) @ v["down"]

    for seed in range(8):
        assert alignment.verify(told_apart, graph, v, x, key=jax.random.key(seed)) > 0.1
        assert alignment.verify_each(told_apart, graph, v, x, key=jax.random.key(seed))["up"] > 0.1


def test_verify_sees_a_group_that_is_too_large():
    net = networks.network("tanh_mlp")
    for group in ("scale", "orthogonal", "linear"):
        node = dataclasses.replace(net.graph.nodes["first"], group=group)
        wrong = dataclasses.replace(net.graph, nodes={**net.graph.nodes, "first": node})
        assert alignment.verify(net.apply, wrong, net.variables, net.inputs, key=KEY) > 1e-2


# ------------------------------------------------------------------------------------------- ways to write a function


def test_shapes_are_enough():
    net = networks.network("vgg")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (net.variables, net.inputs))
    assert str(alignment.trace(net.apply, *shapes)) == str(net.graph)


def plain(variables, x):
    h = jax.nn.relu(x @ variables["a"])
    return jax.nn.relu(h @ variables["b"]) @ variables["c"]


@pytest.mark.parametrize(
    "wrap", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(jax.jit(f)))], ids=["jit", "remat", "both"]
)
def test_wrappers_change_nothing(wrap):
    variables = weights(a=(4, 5), b=(5, 6), c=(6, 3))
    assert str(alignment.trace(wrap(plain), variables, X)) == str(alignment.trace(plain, variables, X))


@jax.custom_jvp
def softsign(x):
    return x / (1 + jnp.abs(x))


softsign.defjvp(lambda primals, tangents: (softsign(*primals), tangents[0]))


@jax.custom_vjp
def cubic(x):
    return x**3


cubic.defvjp(lambda x: (x**3, x), lambda x, g: (g * x,))


@pytest.mark.parametrize("activation", [softsign, cubic], ids=["custom_jvp", "custom_vjp"])
def test_custom_derivatives_are_entered(activation):
    variables = weights(a=(4, 5), c=(5, 3))

    def apply(v, x):
        return activation(x @ v["a"]) @ v["c"]

    graph = alignment.trace(apply, variables, X)
    assert networks.table(graph) == {"a": (5, "permutation")}
    assert alignment.verify(apply, graph, variables, X, key=KEY) < 1e-5


def test_a_cached_helper_does_not_tie_its_two_calls():
    """Both calls share one inner jaxpr; entered with the same variables, the two layers would become one node."""

    @jax.jit
    def helper(x, kernel):
        return jnp.tanh(x @ kernel)

    def apply(v, x):
        return helper(helper(x, v["a"]), v["b"]) @ v["c"]

    variables = weights(a=(4, 4), b=(4, 4), c=(4, 3))
    graph = alignment.trace(apply, variables, X)
    assert networks.table(graph) == {"a": (4, "permutation"), "b": (4, "permutation")}
    assert alignment.verify(apply, graph, variables, X, key=KEY) < 1e-5


def test_weights_used_twice_have_one_label():
    """A recurrent kernel carries its node on both axes."""

    def apply(v, x):
        h = jnp.tanh(x @ v["u"])
        h = jnp.tanh(h @ v["w"] + x @ v["u"])
        return jnp.tanh(h @ v["w"]) @ v["o"]

    variables = weights(u=(4, 5), w=(5, 5), o=(5, 3))
    graph = alignment.trace(apply, variables, X)
    assert networks.table(graph) == {"u": (5, "permutation")}
    assert graph.axes["w"] == (in_("u", 5), out("u", 5))
    assert alignment.verify(apply, graph, variables, X, key=KEY) < 1e-5


def test_a_tied_embedding_is_one_leaf_and_its_stream_is_orthogonal():
    """Table and head are the same tensor: out on the way in, in on the way out; only rotations agree with both."""

    def apply(v, tokens):
        h = v["table"][tokens]
        h = h + jnp.tensordot(jnp.tanh(jnp.tensordot(h, v["a"], 1)), v["b"], 1)
        return jnp.tensordot(h, v["table"].T, 1)

    variables = weights(table=(9, 5), a=(5, 6), b=(6, 5))
    tokens = jnp.arange(12).reshape(3, 4) % 9
    graph = alignment.trace(apply, variables, tokens)
    assert networks.table(graph) == {"table": (5, "orthogonal"), "a": (6, "permutation")}
    assert graph.axes["table"] == (Fixed(9), out("table", 5))
    assert alignment.verify(apply, graph, variables, tokens, key=KEY) < 1e-5


def test_a_slice_cuts_a_node_in_two():
    def apply(v, x):
        h = jnp.tanh(x @ v["a"])
        return jnp.tanh(h[:, :3]) @ v["b"] + h @ v["c"]

    variables = weights(a=(4, 7), b=(3, 3), c=(7, 3))
    graph = alignment.trace(apply, variables, X)
    assert sorted(networks.table(graph).values()) == [(3, "permutation"), (4, "permutation")]
    assert alignment.verify(apply, graph, variables, X, key=KEY) < 1e-5


def test_depthwise_and_grouped_convolutions():
    def convolve(x, kernel, groups):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)

    def apply(v, x):
        h = jax.nn.relu(convolve(x, v["a"], 1))
        h = jax.nn.relu(convolve(h, v["depthwise"], 6))
        h = jax.nn.relu(convolve(h, v["grouped"], 2))
        return h.mean((1, 2)) @ v["o"]

    variables = weights(a=(3, 3, 3, 6), depthwise=(3, 3, 1, 6), grouped=(1, 1, 3, 8), o=(8, 3))
    images = networks.data(2, 4, 4, 3)
    graph = alignment.trace(apply, variables, images)
    assert sorted(node.size for node in graph.nodes.values()) == [2, 3, 4]  # groups; units inside them, before and after
    assert alignment.verify(apply, graph, variables, images, key=KEY) < 1e-5


def test_integer_leaves_pin_what_they_touch_and_have_no_node():
    def apply(v, x):
        return jnp.tanh(x @ v["a"])[:, v["order"]] @ v["b"]

    variables = {**weights(a=(4, 5), b=(5, 3)), "order": jnp.array([1, 0, 2, 4, 3]), "step": jnp.array(3)}
    graph = alignment.trace(apply, variables, X)
    assert all(graph.axes[path] == () or graph.axes[path] == (Fixed(5),) for path in ("order", "step"))
    assert alignment.verify(apply, graph, variables, X, key=KEY) < 1e-5


# ------------------------------------------------------------------------------------------- soundness, case by case


def sound(apply, variables, x=X):
    graph = alignment.trace(apply, variables, x)
    assert alignment.verify(apply, graph, variables, x, key=KEY) < 1e-5
    return networks.table(graph)


def test_halves_told_apart_only_among_parameters_are_two_nodes():
    """exp acts on the first two biases only: units must not cross between the halves."""

    def apply(v, x):
        bias = jnp.concatenate([jnp.exp(v["b"][:2]), v["b"][2:]])
        h = jnp.tanh(x @ v["a"])
        return jnp.tanh(h + jnp.broadcast_to(bias, h.shape)) @ v["c"]

    table = sound(apply, weights(a=(4, 6), b=(6,), c=(6, 3)))
    assert sorted(table.values()) == [(2, "permutation"), (4, "permutation")]


def test_halves_exchanged_only_among_parameters_are_told_apart():
    """The kernel is also used with its halves exchanged: the units of a joint node would stand in another order there."""

    def apply(v, x):
        turned = jnp.concatenate([v["k"][:, 2:], v["k"][:, :2]], axis=1)
        return jnp.tanh(x @ turned) @ v["o"] + jnp.tanh(x @ v["k"]) @ v["o2"]

    sound(apply, weights(k=(4, 6), o=(6, 3), o2=(6, 3)))


def test_pads_of_different_constants_are_two_nodes():
    def apply(v, x):
        h = x @ v["a"]
        h = jnp.concatenate([jnp.zeros((8, 2)), h, jnp.ones((8, 2))], axis=1)
        return jnp.tanh(h + x @ v["d"]) @ v["c"]

    table = sound(apply, weights(a=(4, 3), d=(4, 7), c=(7, 3)))
    assert sorted(table.values()) == [(2, "permutation"), (2, "permutation"), (3, "permutation")]


def test_rounding_to_integers_is_not_linear():
    def apply(v, x):
        return (4 * (x @ v["a"])).astype(jnp.int32).astype(jnp.float32) @ v["b"]

    assert sound(apply, weights(a=(4, 6), b=(6, 3))) == {"a": (6, "permutation")}


def test_an_empty_piece_of_a_concatenation_is_nothing():
    def apply(v, x):
        h = x @ v["a"]
        return jnp.tanh(jnp.concatenate([h, h[:, :0]], axis=1) + h) @ v["c"]

    assert sound(apply, weights(a=(4, 3), c=(3, 3))) == {"a": (3, "permutation")}


def test_normalising_by_the_norm_keeps_permutations_and_quotients_restrict():
    def apply(v, x):
        h = jnp.tanh(x @ v["a"])
        h = h / jnp.linalg.norm(h, axis=1, keepdims=True)
        return (1 / (2 + h)) @ v["b"]

    assert sound(apply, weights(a=(4, 6), b=(6, 3))) == {"a": (6, "permutation")}


@pytest.mark.parametrize("gate", [lambda v, h: jnp.broadcast_to(v["s"], h.shape), lambda v, h: h], ids=["vector", "itself"])
def test_elementwise_products_keep_permutations_only(gate):
    def apply(v, x):
        h = x @ v["a"]
        return (h * gate(v, h)) @ v["b"]

    assert sound(apply, weights(a=(4, 6), s=(6,), b=(6, 3))) == {"a": (6, "permutation")}


def test_a_bounded_relu_loses_its_scales():
    def apply(v, x):
        return jax.nn.relu6(x @ v["a"]) @ v["b"]

    assert sound(apply, weights(a=(4, 6), b=(6, 3))) == {"a": (6, "permutation")}


def test_a_linear_node_met_from_both_sides_is_orthogonal():
    def apply(v, x):
        return ((x @ v["w"]) @ v["w"].T) @ v["o"]

    assert sound(apply, weights(w=(4, 6), o=(4, 2))) == {"w": (6, "orthogonal")}


# ------------------------------------------------------------------------------------------------------------- squares


@pytest.mark.parametrize("square", [jnp.square, lambda h: h * h, lambda h: h**2], ids=["square", "mul", "integer_pow"])
def test_the_length_of_a_vector_leaves_its_rotations(square):
    """RMSNorm without a scale, under jit and with a cast, however the square is written."""

    def apply(v, x):
        h = x @ v["a"]
        squares = jax.jit(square)(h).astype(jnp.float32)
        return (h * jax.lax.rsqrt(squares.mean(-1, keepdims=True) + 1e-5)) @ v["b"]

    assert sound(apply, weights(a=(4, 6), b=(6, 3))) == {"a": (6, "orthogonal")}


def test_lengths_of_parts_leave_permutations_of_the_parts_and_rotations_in_each():
    def apply(v, x):
        h = (x @ v["a"]).reshape(8, 2, 3)
        h = h * jax.lax.rsqrt(jnp.square(h).sum(-1, keepdims=True) + 1e-5)
        return h.reshape(8, 6) @ v["b"]

    table = sound(apply, weights(a=(4, 6), b=(6, 3)))
    assert table == {"a#1": (2, "permutation"), "a#2": (3, "orthogonal", {"a#1": 2})}


@pytest.mark.parametrize(
    "power",
    [
        lambda h: h * h * h,
        lambda h: h * (h * h),
        lambda h: (h * h) * (h * h),
        lambda h: 2 * (h * h),
        lambda h: jnp.sqrt(h * h),
        lambda h: (h * h).T.T,
        lambda h: jnp.concatenate([h * h, h], axis=1),
    ],
)
def test_a_square_that_is_not_summed_at_once_leaves_permutations(power):
    def apply(v, x):
        h = x @ v["a"]
        return (h * power(h).sum(-1, keepdims=True)) @ v["b"]

    assert sound(apply, weights(a=(4, 6), b=(6, 3))) == {"a": (6, "permutation")}


@pytest.mark.parametrize(
    ("constant", "group"),
    [
        (lambda: jnp.zeros((8, 6)) ** 3, "scale"),
        (lambda: jnp.zeros((8, 6)) * 2 + jnp.sqrt(jnp.zeros((8, 6))), "scale"),
        (lambda: jnp.full((8, 6), 2.0) ** 3, "permutation"),
        (lambda: jnp.ones((8, 6)) - jnp.zeros((8, 6)), "permutation"),
    ],
)
def test_the_larger_of_a_unit_and_a_constant_is_homogeneous_if_that_is_zero(constant, group):
    """Constants are computed: a cube of zeros is zero."""
    apply = jax.jit(lambda v, x: jnp.maximum(x @ v["a"], constant()) @ v["b"])
    assert sound(apply, weights(a=(4, 6), b=(6, 3))) == {"a": (6, group)}


def test_a_square_is_used_up_by_the_next_operation():
    """The sum over y = (h * h) @ b is no squared length of y."""

    def apply(v, x):
        h = x @ v["a"]
        return ((h * h) @ v["b"]).sum(1, keepdims=True) @ v["c"]

    variables = {**weights(a=(4, 5), b=(5, 6)), "c": networks.data(1, 3)}
    assert sound(apply, variables) == {"a": (5, "permutation"), "b": (6, "permutation")}


def test_a_square_that_is_an_output_or_used_twice():
    def returned(v, x):
        h = x @ v["a"]
        squares = h * h
        return (h * squares.sum(1, keepdims=True)) @ v["b"], squares

    def twice(v, x):
        h = x @ v["a"]
        squares = h * h
        return (h * squares.sum(1, keepdims=True)) @ v["b"] + squares @ v["b"]

    assert sound(returned, weights(a=(4, 6), b=(6, 3))) == {}
    assert sound(twice, weights(a=(4, 6), b=(6, 3))) == {"a": (6, "permutation")}


# -------------------------------------------------------------------------------------------------- what is inside heads


def scores_between_heads(tied):
    def apply(v, x):
        q, k = (jnp.tensordot(x, v[name], 1) for name in ("query", "key"))
        scores = jnp.tanh(jnp.einsum("bhd,bgd->bhg", q, k))
        return jnp.tensordot(scores + scores.swapaxes(1, 2) if tied else scores, v["out"], 2)

    return apply


def test_where_two_heads_meet_there_is_one_map_for_all_of_them():
    """Scores between head h of the queries and head g of the keys: a map for each head would mix two of them."""
    table = sound(scores_between_heads(False), weights(query=(4, 2, 3), key=(4, 5, 3), out=(2, 5, 3)))
    assert table == {"query#1": (2, "permutation"), "query#2": (3, "linear"), "key": (5, "permutation")}


def test_where_a_head_meets_the_others_of_its_kind_there_is_one_map_for_all_of_them():
    """The same with both kinds of heads tied, so that both axes are one node."""
    variables = weights(query=(4, 2, 3), key=(4, 2, 3), out=(2, 2, 3))
    table = sound(scores_between_heads(True), variables)
    assert table == {"query#1": (2, "permutation"), "query#2": (3, "linear")}


def test_verify_sees_a_map_for_each_head_where_one_must_do_for_all():
    apply, variables = scores_between_heads(True), weights(query=(4, 2, 3), key=(4, 2, 3), out=(2, 2, 3))
    graph = alignment.trace(apply, variables, X)
    copied = dataclasses.replace(graph.nodes["query#2"], index=("query#1",), copies=(2,))
    wrong = dataclasses.replace(graph, nodes={**graph.nodes, "query#2": copied})
    assert alignment.verify(apply, wrong, variables, X, key=KEY) > 1e-2


def test_queries_keys_and_values_stacked_on_an_axis_are_cases():
    """A kernel (3, 4, 2, 5) told apart by slices: queries and keys share a node at their places, values have another."""

    def apply(v, x):
        q, k, w = (jnp.tensordot(x, v["qkv"][n], 1) for n in range(3))
        scores = jax.nn.softmax(jnp.einsum("bhd,chd->hbc", q, k), axis=-1)
        return jnp.tensordot(jnp.einsum("hbc,chd->bhd", scores, w), v["out"], 2)

    variables = weights(qkv=(3, 4, 2, 5), out=(2, 5, 3))
    graph = alignment.trace(apply, variables, X)
    assert networks.table(graph) == {
        "qkv#1": (2, "permutation"),
        "qkv#2": (5, "linear", {"qkv#1": 2}),
        "qkv#3": (5, "linear", {"qkv#1": 2}),
    }
    both, values = "qkv#2", "qkv#3"
    stack = graph.axes["qkv"][0].name
    cases = alignment.Cases(stack, (out(both, 5), in_(both, 5), out(values, 5)))
    assert graph.axes["qkv"] == (Fixed(3, stack), Fixed(4), out("qkv#1", 2), cases)
    assert alignment.verify(apply, graph, variables, X, key=KEY) < 1e-5
    mixed = relabel(graph, "qkv", 3, alignment.Cases(stack, (out(both, 5), in_(values, 5), out(both, 5))))
    assert alignment.verify(apply, mixed, variables, X, key=KEY) > 1e-2


def test_what_is_stacked_and_told_apart_again_stays_apart():
    def apply(v, x):
        both = jnp.stack([x @ v["a"], x @ v["b"]])
        return jnp.tanh(both[0]) @ v["c"] + jnp.tanh(both[1]) @ v["d"]

    table = sound(apply, weights(a=(4, 5), b=(4, 5), c=(5, 3), d=(5, 3)))
    assert table == {"a": (5, "permutation"), "b": (5, "permutation")}


def test_what_is_stacked_may_be_contracted_with_a_stack():
    def apply(v, x):
        both = jnp.tanh(jnp.stack([x @ v["a"], x @ v["b"]]))
        return jnp.einsum("kbi,kij->bj", both, v["c"])

    table = sound(apply, weights(a=(4, 5), b=(4, 5), c=(2, 5, 3)))
    assert table == {"a": (5, "permutation"), "b": (5, "permutation")}


def test_rows_of_a_table_that_are_added_to_one_stream_are_no_cases():
    """Three of five learned vectors are read by number and added to the same features: one node, unused rows included."""

    def apply(v, x):
        h = x @ v["a"]
        for k in (0, 2, 3):
            h = jnp.tanh(h + jnp.broadcast_to(v["rows"][k], h.shape))
        return h @ v["b"]

    variables = weights(a=(4, 6), rows=(5, 6), b=(6, 3))
    graph = alignment.trace(apply, variables, X)
    assert networks.table(graph) == {"a": (6, "permutation")}
    assert graph.axes["rows"][1] == out("a", 6)
    assert alignment.verify(apply, graph, variables, X, key=KEY) < 1e-5


# ------------------------------------------------------------------------------------------- primitives without a rule


def sorting(v, x):
    """Sorting along the features, between two layers."""
    h = jnp.tanh(x @ v["a"])
    h = jax.lax.sort(h @ v["b"], dimension=1)
    return jnp.tanh(h) @ v["c"]


SORTED = weights(a=(4, 5), b=(5, 6), c=(6, 3))


def test_an_unknown_primitive_pins_and_warns_once_by_name(monkeypatch):
    monkeypatch.delitem(RULES, "sort")

    def twice(v, x):
        return sorting(v, x) + sorting(v, 2 * x)

    with pytest.warns(UserWarning, match="no rule for primitive 'sort'") as caught:
        graph = alignment.trace(twice, SORTED, X)
    assert len(caught) == 1
    assert networks.table(graph) == {"a": (5, "permutation")}  # the layer before is free, the sorted one is not
    reasons = {(p.path, p.axis): p.reason for p in graph.pinned}
    assert reasons["b", 1] == reasons["c", 0] == "unsupported primitive 'sort'"
    assert alignment.verify(twice, graph, SORTED, X, key=KEY) < 1e-5


def test_no_warning_where_nothing_could_have_moved(monkeypatch):
    """Only the data are sorted."""
    monkeypatch.delitem(RULES, "sort")

    def apply(v, x):
        h = jnp.tanh(jax.lax.sort(x, dimension=1) @ v["a"])
        return jnp.tanh(h @ v["b"]) @ v["c"]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = alignment.trace(apply, SORTED, X)
    assert networks.table(graph) == {"a": (5, "permutation"), "b": (6, "permutation")}


def test_ranking_the_logits_or_sorting_units_is_known():
    """Rankings hold the axis they rank and nothing else."""

    def apply(v, x):
        h = jax.lax.sort(jnp.tanh(x @ v["a"]), dimension=0)
        return jax.lax.top_k(h @ v["b"] @ v["c"], 2)[0]

    graph = alignment.trace(apply, SORTED, X)
    assert networks.table(graph) == {"a": (5, "permutation"), "b": (6, "linear")}
    assert alignment.verify(apply, graph, SORTED, X, key=KEY) < 1e-5


@pytest.mark.parametrize("largest", [jax.lax.top_k, jax.lax.approx_max_k])
def test_units_that_are_ranked_are_held(largest):
    """Also where the axis is counted from the last."""

    def apply(v, x):
        return largest(jnp.tanh(x @ v["a"]) @ v["b"], 6)[0] @ v["c"]

    graph = alignment.trace(apply, SORTED, X)
    assert networks.table(graph) == {"a": (5, "permutation")}
    assert alignment.verify(apply, graph, SORTED, X, key=KEY) < 1e-5


def test_a_taught_rule_lifts_the_pin(monkeypatch):
    """Sorting along the batch treats every feature alike."""

    def apply(v, x):
        return jnp.tanh(jax.lax.sort(x @ v["a"], dimension=0)) @ v["c"]

    variables = weights(a=(4, 5), c=(5, 3))
    monkeypatch.setitem(RULES, "sort", None)  # restores the table afterwards
    del RULES["sort"]
    with pytest.warns(UserWarning, match="'sort'"):
        assert networks.table(alignment.trace(apply, variables, X)) == {}

    @alignment.primitives.rule("sort")
    def _(terms, eqn):
        (value,) = eqn.ins
        terms.restrict(value.axes[1], Group.PERMUTATION)
        terms.pin(value.axes[0], "sorted")
        return [value.axes]

    graph = alignment.trace(apply, variables, X)
    assert networks.table(graph) == {"a": (5, "permutation")}
    assert alignment.verify(apply, graph, variables, X, key=KEY) < 1e-5


def test_pins_name_the_line_that_holds_an_axis(monkeypatch):
    """File and line of the user's own code, also where a library function or a nested function stands in between."""
    monkeypatch.delitem(RULES, "sort")

    def inner(h):
        return jnp.sort(h, axis=1)  # second line

    def apply(v, x):
        h = jnp.cumsum(x @ v["a"], axis=1)  # second line
        return jax.jit(inner)(jnp.tanh(h @ v["b"])) @ v["c"]

    with pytest.warns(UserWarning, match="'sort'"):
        graph = alignment.trace(apply, SORTED, X)
    found = {pin.reason: pin.source for pin in graph.pinned if pin.path == "b"}
    here = "tracing/test_trace.py"
    assert found["order matters along this axis"] == f"{here}:{apply.__code__.co_firstlineno + 1} (apply)"
    assert found["unsupported primitive 'sort'"] == f"{here}:{inner.__code__.co_firstlineno + 1} (inner)"
    (met,) = (pin for pin in graph.pinned if (pin.path, pin.axis, pin.reason) == ("a", 0, "input"))
    assert met.source == found["order matters along this axis"]  # where the inputs come in


# ------------------------------------------------------------------------------------------- what cannot be traced


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda v, x: {"logits": x @ v["a"], "aux": (1.0, "text")}, "apply must return arrays, got str at 'aux/1'"),
        (lambda v, x: (x @ v["a"], {"model": jnp.tanh}), ".*at '1/model'"),
        (lambda v, x: "text", r"apply must return arrays, got str\s"),
        (lambda v, x: None, "apply must return arrays, got none"),
        (lambda v, x: {"a": (), "b": []}, "apply must return arrays, got none"),
        (lambda v, x: 2 * x, "reads none of its variables: does it close over the weights"),
    ],
)
def test_functions_that_are_none_of_arrays_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        alignment.trace(value, weights(a=(4, 3)), X)


@pytest.mark.parametrize("ordered", [False, True])
def test_side_effects_are_refused(ordered):
    def apply(v, x):
        io_callback(print, None, x.sum(), ordered=ordered)
        return x @ v["a"]

    with pytest.raises(ValueError, match=r"apply must be pure, got side effects: .*IO"):
        alignment.trace(apply, weights(a=(4, 3)), X)


class RefusedError(Exception):
    pass


def refusing(v, x):
    if x.shape[1] != 4:
        raise RefusedError(f"rows of four, got {x.shape}")
    return x @ v["a"]


@pytest.mark.parametrize("apply", [refusing, lambda v, x: x @ v["a"], jax.jit(lambda v, x: x @ v["a"])])
def test_an_error_of_the_function_itself_comes_through_as_it_is(apply):
    variables, wrong = weights(a=(4, 3)), networks.data(8, 5)
    with pytest.raises((RefusedError, TypeError)) as direct:
        apply(variables, wrong)
    with pytest.raises(direct.type) as traced:
        alignment.trace(apply, variables, wrong)
    assert str(traced.value) == str(direct.value)
    assert traced.value.__notes__[-1] == "apply was called as apply(dict, float32[8,5])"


def test_slips_with_flax_modules_are_told_of():
    module = nn.Dense(3)
    variables = {"params": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
    for apply, given, called in (
        (module, variables, "apply(dict, float32[8,4])"),
        (module.apply, variables["params"], "apply(dict, float32[8,4])"),
        (module.apply, [variables], "apply(list, float32[8,4])"),
    ):
        with pytest.raises(Exception) as traced:  # whatever Flax raises
            alignment.trace(apply, given, X)
        expected = f"apply was called as {called}; of a Linen module give module.apply and all its variables, {{'params': ...}}"
        assert traced.value.__notes__[-1] == expected


def test_what_went_wrong_inside_a_linen_module_that_was_given_as_asked_is_no_slip():
    module = nn.Dense(3)
    with pytest.raises(ScopeParamShapeError) as traced:
        alignment.trace(module.apply, {"params": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)}}, X)
    assert traced.value.__notes__[-1] == "apply was called as apply(dict, float32[8,4])"


def test_modules_of_nnx_in_the_place_of_what_they_are_split_into_are_told_of():
    module = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    definition, variables = nnx.split(module)
    for apply, given in ((module, variables), (module.__call__, variables), (lambda v, x: nnx.merge(definition, v)(x), module)):
        with pytest.raises(Exception) as traced:  # whatever NNX raises
            alignment.trace(apply, given, X)
        assert "; of a module of NNX give what it is split into" in traced.value.__notes__[-1]
    with pytest.raises(Exception) as traced:
        alignment.trace(lambda v, x: nnx.merge(definition, v)(x), variables, X[:, :2])
    assert traced.value.__notes__[-1] == "apply was called as apply(State, float32[8,2])"


def test_images_with_channels_first_are_told_of():
    with pytest.raises(TypeError) as traced:
        alignment.trace(lambda v, x: x @ v["a"], weights(a=(3, 2)), networks.data(2, 3, 8, 8))
    note = traced.value.__notes__[-1]
    assert note.startswith("apply was called as apply(dict, float32[2,3,8,8]); ") and note.endswith("x.transpose(0, 2, 3, 1)")


def keyed(v, x):
    """Noise from keys among the variables: new style, old style, one of several."""
    noise = jax.random.normal(v["key"], (8, 1)) + jax.random.normal(jax.random.wrap_key_data(v["old"]), (8, 1))
    noise = noise + jax.random.normal(v["several"][1], (8, 1))
    h = jnp.tanh(x @ v["a"])
    return (h * jnp.broadcast_to(noise, h.shape)) @ v["b"]


KEYED = {
    **weights(a=(4, 5), b=(5, 3)),
    "key": jax.random.key(1),
    "old": jax.random.key_data(jax.random.key(2)),
    "several": jax.random.split(KEY, 3),
    "count": np.int32(3),
}


def test_keys_and_integers_among_the_variables_are_held_and_left_alone():
    graph = alignment.trace(keyed, KEYED, X)
    assert networks.table(graph) == {"a": (5, "permutation")}
    assert [graph.axes[name] for name in ("key", "old", "several", "count")] == [(), (Fixed(2),), (Fixed(3),), ()]
    assert alignment.verify(keyed, graph, KEYED, X, key=KEY) < 1e-5
    moved = alignment.transport(graph, networks.elements(graph), KEYED)
    assert (moved["a"] != KEYED["a"]).any()
    for name in ("key", "several"):
        assert moved[name].dtype == KEYED[name].dtype
        assert (jax.random.key_data(moved[name]) == jax.random.key_data(KEYED[name])).all()
    assert alignment.capture(keyed, graph, KEYED, X).nodes["a"].shape == (8, 5)


def test_models_with_keys_among_their_variables_are_aligned():
    graph = alignment.trace(keyed, KEYED, X)
    aligned = alignment.align(
        alignment.WeightMatching(), graph, [KEYED, alignment.transport(graph, networks.elements(graph), KEYED)]
    )
    np.testing.assert_array_equal(aligned[1]["a"], KEYED["a"])


def test_axes_of_size_zero():
    """Nothing to move, nothing in the way: an empty leaf, an empty slice, no batch at all."""

    def apply(v, x):
        h = jnp.tanh(jnp.concatenate([x @ v["a"], v["none"]], axis=0))
        empty = h[:, :0].reshape(0, h.shape[0]).T @ v["rows"]
        return h @ v["b"] + empty + v["none"].sum()

    variables = {**weights(a=(4, 5), b=(5, 3)), "none": jnp.zeros((0, 5)), "rows": jnp.zeros((0, 3))}
    assert sound(apply, variables) == {"a": (5, "permutation")}
    assert networks.table(alignment.trace(apply, variables, jnp.zeros((0, 4)))) == {"a": (5, "permutation")}


def test_a_node_without_units_is_harmless():
    variables = {"a": jnp.zeros((4, 0)), "b": jnp.zeros((0, 3)), "c": networks.data(4, 3)}

    def apply(v, x):
        return jnp.tanh(x @ v["a"]) @ v["b"] + x @ v["c"]

    sound(apply, variables)


@pytest.mark.parametrize("weights_too", [False, True])
def test_complex_numbers_pass_through(weights_too):
    """Features turned in the complex plane keep their node; complex leaves are held."""

    def apply(v, x):
        h = (x @ v["a"]).astype(jnp.complex64)
        h = h * jnp.complex64(1j) + jnp.broadcast_to(TURN, h.shape)
        y = h @ (v["b"] if weights_too else v["b"].astype(jnp.complex64))
        return y.real + y.imag

    variables = weights(a=(4, 5), b=(5, 3))
    if weights_too:
        variables["b"] = variables["b"].astype(jnp.complex64) * jnp.complex64(1 + 0.5j)
    assert sound(apply, variables) == ({} if weights_too else {"a": (5, "permutation")})


TURN = np.full(5, 1j, np.complex64)  # not zero, although its real part is


def test_variables_of_another_structure_are_refused_wherever_a_graph_is_used():
    net = networks.network("mlp")
    wrong = {**net.variables, "second": {**net.variables["second"], "bias": np.zeros(6, np.float32)}}
    message = r"variables do not fit the graph at 'second/bias': got \(6,\), traced with \(7,\)"
    for use in (
        lambda: alignment.verify(net.apply, net.graph, wrong, net.inputs, key=KEY),
        lambda: alignment.verify_each(net.apply, net.graph, wrong, net.inputs, key=KEY),
        lambda: alignment.capture(net.apply, net.graph, wrong, net.inputs),
        lambda: alignment.transport(net.graph, {}, wrong),
        lambda: alignment.align(alignment.WeightMatching(), net.graph, [net.variables, wrong]),
    ):
        with pytest.raises(ValueError, match=message):
            use()
