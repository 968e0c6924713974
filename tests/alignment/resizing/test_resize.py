"""Networks with other widths: twice the units, each read by half, are the same function; so are other widths by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import rectangular, resize, trace, transport, widths_of
from alignment.biases import channel_biases
from alignment.graph import Node
from alignment.maps import NodeMap
from alignment.resizing.sizes import Sizes
from alignment.unification.algebra import Terms
from alignment.unification.terms import Case, Ref, product, sequence
from npmerge.models import MODELS, Config, Gpt2, Llama, abstract, example
from tests.alignment import networks, zoo_libraries, zoo_plain
from tests.alignment.test_zoo import network
from tests.contract.test_models import CONFIGS, generic, inputs

BUILDERS = zoo_plain.BUILDERS | zoo_libraries.BUILDERS
UNEQUAL = {  # a unit that stands twice counts twice in a norm, in a softmax over experts, in a product with itself
    "weight_norm",
    "gram_weight_alone",
    "normalised_queries",
    "normalised_queries_with_scale",
    "soft_experts",
    "tied_embedding",
}


def doubled(node: Node) -> NodeMap:
    eye = np.eye(node.size, dtype=np.float32)
    push = np.broadcast_to(np.concatenate([eye, eye]), (*node.copies, 2 * node.size, node.size))
    return rectangular(push, np.swapaxes(push, -1, -2) / 2)


def same(new, old):
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in UNEQUAL])
def test_twice_the_units_read_by_half_are_the_same_function(name):
    net = network(name)
    nodes = net.graph.nodes.values()
    wide = transport(net.graph, {node.name: doubled(node) for node in nodes}, net.variables)
    larger = resize(net.apply, net.graph, wide, {node.name: 2 * node.size for node in nodes})
    same(*jax.jit(lambda w, v, x: (larger(w, x), net.apply(v, x)))(wide, net.variables, net.inputs))


@pytest.mark.parametrize("config", [c for m in MODELS for c in CONFIGS[m]], ids=str)
def test_every_architecture_in_both_modes(config: Config):
    """Tied embeddings count a doubled stream twice, so there it keeps its width."""
    net, x = abstract(config), inputs(config)
    variables = generic(net.variables)
    graph = trace(net.apply, variables, example(config))
    tied = isinstance(config, Gpt2) or (isinstance(config, Llama) and config.tied)
    nodes = [n for n in graph.nodes.values() if not (tied and n.size == config.width and not n.index)]
    wide = transport(graph, {node.name: doubled(node) for node in nodes}, variables)
    widths = {node.name: 2 * node.size for node in nodes}
    same(jax.jit(resize(net.apply, graph, wide, widths))(wide, x), jax.jit(net.apply)(variables, x))
    old, new = jax.jit(net.train_apply)(variables, x), jax.jit(resize(net.train_apply, graph, wide, widths))(wide, x)
    same(new[0], old[0])
    same(new[1], transport(graph, {node.name: doubled(node) for node in nodes}, old[1]))


def test_a_function_of_other_widths_is_a_function_like_any_other():
    """It is traced to the same nodes, takes other batches, is differentiated and compared, and is resized back."""
    net = networks.network("option_a")
    wide = {node.name: doubled(node) for node in net.graph.nodes.values()}
    variables = transport(net.graph, wide, net.variables)
    apply = resize(net.apply, net.graph, variables)
    graph = trace(apply, variables, net.inputs)
    assert {n: v.size for n, v in graph.nodes.items()} == {n: 2 * v.size for n, v in net.graph.nodes.items()}
    assert apply(variables, net.inputs[:3]).shape == net.apply(net.variables, net.inputs[:3]).shape
    gradient = jax.grad(lambda v: jnp.sum(jnp.square(apply(v, net.inputs))))(variables)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradient))
    half = {name: rectangular(m.push.T / 2, m.pull.T * 2) for name, m in wide.items()}
    back = transport(graph, half, variables)
    chex.assert_trees_all_close(back, net.variables, rtol=1e-5)
    same(resize(apply, graph, back)(back, net.inputs), net.apply(net.variables, net.inputs))
    assert resize(net.apply, net.graph, variables) == apply
    assert hash(resize(net.apply, net.graph, variables)) == hash(apply)


@pytest.mark.parametrize("name", ["mlp", "option_a"])
def test_biases_are_found_as_in_the_network_itself(name):
    net = networks.network(name)
    wide = transport(net.graph, {node.name: doubled(node) for node in net.graph.nodes.values()}, net.variables)
    apply = resize(net.apply, net.graph, wide)
    found = channel_biases(apply, trace(apply, wide, net.inputs), wide, net.inputs)
    assert found == channel_biases(net.apply, net.graph, net.variables, net.inputs)
    assert found


def test_derivatives_of_activations_are_their_own():
    """The slope of relu at zero is zero, whatever a maximum says."""

    def apply(v, x):
        return jax.nn.relu(x @ v["up"]) @ v["down"]

    variables = {"up": jnp.zeros((3, 4)), "down": jnp.ones((4, 2))}
    graph = trace(apply, variables, jnp.ones((2, 3)))
    wide = {"up": jnp.zeros((3, 7)), "down": jnp.ones((7, 2))}
    gradient = jax.grad(lambda v: resize(apply, graph, wide)(v, jnp.ones((2, 3))).sum())(wide)
    np.testing.assert_array_equal(gradient["up"], np.zeros((3, 7)))


@pytest.mark.parametrize("kind", ["jvp", "vjp"])
def test_derivatives_of_the_user_are_kept(kind):
    wrap = getattr(jax, f"custom_{kind}")
    slope = wrap(lambda x: jnp.maximum(x, 0))
    if kind == "jvp":
        slope.defjvp(lambda x, t: (slope(*x), 3 * t[0]))
    else:
        slope.defvjp(lambda x: (slope(x), None), lambda _, g: (3 * g,))

    def apply(v, x):
        return slope(x @ v["up"]) @ v["down"]

    variables, wide = ({"up": jnp.zeros((3, n)), "down": jnp.ones((n, 2))} for n in (4, 7))
    graph = trace(apply, variables, jnp.ones((2, 3)))
    gradient = jax.grad(lambda v: resize(apply, graph, wide)(v, jnp.ones((2, 3))).sum())(wide)
    np.testing.assert_array_equal(gradient["up"], np.full((3, 7), 12))


def test_widths_written_into_the_code():
    """Reshapes, broadcasts, slices of a fused projection and a mean over units, all with numbers."""

    def apply(v, x):
        both = jnp.tensordot(x, v["fused"], 1).reshape(-1, 2 * 4)
        a, b = both[:, :4], both[:, 4:8]
        h = jax.nn.relu(a + jnp.broadcast_to(v["bias"], (len(x), 4))) * jnp.concatenate([jnp.tanh(b)], axis=1)
        h = h - jnp.broadcast_to(h.sum(1, keepdims=True) / 4.0, (len(x), 4))
        return jnp.tensordot(h, v["down"], 1)

    rng = np.random.default_rng(0)
    shapes = {"fused": (3, 8), "bias": (4,), "down": (4, 2)}
    variables = {name: jnp.asarray(rng.standard_normal(shape).astype(np.float32), np.float32) for name, shape in shapes.items()}
    x = jnp.asarray(rng.standard_normal((5, 3)).astype(np.float32), np.float32)
    graph = trace(apply, variables, x)
    wide = {
        name: jnp.asarray(rng.standard_normal(s).astype(np.float32), np.float32)
        for name, s in {"fused": (3, 14), "bias": (7,), "down": (7, 2)}.items()
    }
    a, b = np.split(np.asarray(x) @ np.asarray(wide["fused"]), 2, axis=1)
    h = np.maximum(a + np.asarray(wide["bias"]), 0) * np.tanh(b)
    np.testing.assert_allclose(
        resize(apply, graph, wide)(wide, x), (h - h.mean(1, keepdims=True)) @ np.asarray(wide["down"]), rtol=1e-4, atol=1e-5
    )


# ------------------------------------------------------------------------------------------------------------ widths


def test_widths_are_read_off_the_variables():
    net = networks.network("option_a")
    assert widths_of(net.graph, net.variables) == {name: node.size for name, node in net.graph.nodes.items()}
    node = net.graph.nodes["params/block3/conv2"]
    wide = transport(net.graph, {node.name: doubled(node)}, net.variables)
    assert widths_of(net.graph, wide)[node.name] == 2 * node.size


def test_heads_keep_their_number_unless_it_is_said():
    net = network("attention_by_matmul")
    inner = {n.name: doubled(n) for n in net.graph.nodes.values() if n.index}
    wide = transport(net.graph, inner, net.variables)
    found = widths_of(net.graph, wide)
    assert {name for name in found if found[name] != net.graph.nodes[name].size} == inner.keys()
    same(resize(net.apply, net.graph, wide)(wide, net.inputs), net.apply(net.variables, net.inputs))


def test_shapes_that_no_widths_make_are_refused():
    net = networks.network("mlp")
    wrong = {**net.variables, "second": {"kernel": jnp.zeros((8, 6)), "bias": net.variables["second"]["bias"]}}
    with pytest.raises(ValueError, match=r"no widths of the nodes give 'second/(bias|kernel)' the shape"):
        resize(net.apply, net.graph, wrong)
    with pytest.raises(ValueError, match="'second/bias' is a leaf of only one of them"):
        resize(net.apply, net.graph, {**net.variables, "second": {"kernel": jnp.zeros((8, 7))}})
    with pytest.raises(ValueError, match="unknown node 'third': expected one of first, second"):
        widths_of(net.graph, net.variables, {"third": 4})


def test_nodes_that_share_every_axis_are_named():
    def apply(v, x):
        left, right = jnp.split(x @ v["fused"], [2], axis=1)
        return jnp.concatenate([jnp.tanh(left), jax.nn.relu(right)], axis=1) @ v["down"]

    small, wide = ({"fused": jnp.ones((4, n)), "down": jnp.ones((n, 2))} for n in (5, 9))
    graph = trace(apply, small, jnp.ones((1, 4)))
    a, b = graph.nodes
    with pytest.raises(ValueError, match=rf"widths of '{a}' and '{b}' cannot be told apart: .* axis 0 of 'down', .* 9 units"):
        widths_of(graph, wide)
    assert widths_of(graph, wide, {a: np.int64(3)}) == {a: 3, b: 6}


@pytest.mark.parametrize(
    ("widths", "says"),
    [
        ([("first", 4)], "widths must be a mapping from nodes to numbers of units, got list"),
        ({"first": 4.0}, "the width of 'first' must be an integer of 1 or more, got 4.0"),
        ({"first": 0}, "the width of 'first' must be an integer of 1 or more, got 0"),
        ({3: 4}, "unknown node 3: expected one of"),
    ],
)
def test_widths_of_a_wrong_kind_are_refused(widths, says):
    net = networks.network("mlp")
    with pytest.raises(ValueError, match=says):
        resize(net.apply, net.graph, net.variables, widths)


def test_a_second_call_traces_nothing():
    net, calls = networks.network("mlp"), []
    wide = transport(net.graph, {"first": doubled(net.graph.nodes["first"])}, net.variables)

    def apply(v, x):
        calls.append(x.shape)
        return net.apply(v, x)

    larger = resize(apply, net.graph, wide)
    first = larger(wide, net.inputs)
    np.testing.assert_array_equal(larger(wide, net.inputs), first)
    same(
        larger(jax.tree.map(jnp.zeros_like, wide), net.inputs),
        net.apply(jax.tree.map(jnp.zeros_like, net.variables), net.inputs),
    )
    assert len(calls) == 1
    larger(wide, net.inputs[:2])
    assert len(calls) == 2


def test_variables_of_other_widths_than_the_function_are_refused():
    net = networks.network("mlp")
    wide = transport(net.graph, {"first": doubled(net.graph.nodes["first"])}, net.variables)
    apply = resize(net.apply, net.graph, wide)
    with pytest.raises(ValueError, match=r"variables do not fit the widths at 'first/bias': got \(8,\), expected \(16,\)"):
        apply(net.variables, net.inputs)


# ------------------------------------------------------------------------------------------------------------- sizes


def test_sizes_and_offsets_of_terms():
    terms = Terms()
    a, b, fixed = terms.fresh(2), terms.fresh(3), terms.fresh(4, pin="position")
    assert isinstance(a, Ref) and isinstance(b, Ref) and isinstance(fixed, Ref)
    sizes = Sizes(terms, {"a": (a.atom,), "b": (b.atom,)}, {"a": 5, "b": 3})
    assert [sizes.size(t) for t in (a, b, fixed, sequence([a, b]), product([fixed, a]))] == [5, 3, 4, 8, 20]
    line = sequence([a, b, fixed])
    assert [sizes.offset(line, k) for k in (0, 2, 4, 5, 7, 9)] == [0, 5, 7, 8, 10, 12]  # inside what stays, too
    assert [sizes.offset(product([fixed, a]), k) for k in (2, 6)] == [5, 15]
    with pytest.raises(ValueError, match="begins at 1 of 2 units, inside a node whose width changes"):
        sizes.offset(line, 1)
    with pytest.raises(ValueError, match=r"must have one width, got \[3, 5\]"):
        sizes.size(Case(fixed.atom, (a, b)))


def test_a_node_of_several_atoms_shares_its_width():
    terms = Terms()
    left, right = terms.fresh(2), terms.fresh(6)
    assert isinstance(left, Ref) and isinstance(right, Ref)
    sizes = Sizes(terms, {"both": (left.atom, right.atom)}, {"both": 12})
    assert (sizes.size(left), sizes.size(right)) == (3, 9)
