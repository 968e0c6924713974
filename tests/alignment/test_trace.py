"""The symmetry graph against what theory says: too few ties break `verify`, too many break the tables."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import pytest

import alignment
from alignment import Fixed, NodeAxis, Part, Product, Segments
from alignment.primitives import RULES
from alignment.terms import Group
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
    for k, (node, what) in enumerate(net.graph.nodes.items()):
        maps = {node: alignment.maps.random_element(what, jax.random.fold_in(KEY, k))}
        assert alignment.discrepancy(net.apply, net.graph, maps, net.variables, net.inputs) < 1e-5, node


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
    assert "axes held fixed (graph.pinned): position under a convolution: 4" in text


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


def test_scan_is_named():
    def apply(v, x):
        h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h), None), x @ v["a"], None, length=2)
        return h @ v["b"]

    with pytest.warns(UserWarning, match="no rule for primitive 'scan'"):
        graph = alignment.trace(apply, weights(a=(4, 5), b=(5, 3)), X)
    assert networks.table(graph) == {}


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
