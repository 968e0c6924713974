"""Loops and branches are entered: what is carried has one map, what is inside a step one for each step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import Fixed, NodeAxis
from tests.alignment import networks
from tests.alignment.networks import data
from tests.alignment.tracing.test_trace import KEY, X, in_, out, sound, weights

STACK = {"up": (3, 6, 5), "down": (3, 5, 6)}


def step(h, w):
    """One residual layer of a stack."""
    return h + jax.nn.relu(h @ w["up"]) @ w["down"], None


def layers(v):
    return {name: v[name] for name in STACK}


# ---------------------------------------------------------------------------------------------------------------- scan


def test_labels_of_scanned_layers():
    """The stream has one map, the towers one in each layer, their units one in each tower of each layer."""
    graph = networks.network("towers").graph
    steps, towers, units = "layers/into[0]", "layers/into#1", "layers/into#2"
    assert graph.axes["layers/into"] == (Fixed(3, steps), in_("embed", 7), out(towers, 2), out(units, 4))
    assert graph.axes["layers/with_bias"] == (Fixed(3, steps), out(towers, 2), out(units, 4))
    assert graph.axes["layers/out"] == (Fixed(3, steps), in_(towers, 2), in_(units, 4), out("embed", 7))
    assert graph.nodes[units].index == (steps, towers)
    assert graph.nodes[units].copies == (3, 2)
    held = {(pin.path, pin.axis): pin.reason for pin in graph.pinned}
    assert held["layers/into", 0] == held["layers/out", 0] == "steps of a loop are in order"


@pytest.mark.parametrize("reverse", [False, True])
def test_one_map_for_the_carry_and_one_for_each_step_inside(reverse):
    def apply(v, x):
        h, _ = jax.lax.scan(step, x @ v["a"], layers(v), reverse=reverse)
        return h @ v["b"]

    table = sound(apply, weights(a=(4, 6), b=(6, 3), **STACK))
    assert sorted(table.values(), key=str) == [(5, "scale", {"up[0]": 3}), (6, "linear")]


def test_verify_sees_a_map_of_the_carry_for_each_step():
    def apply(v, x):
        h, _ = jax.lax.scan(step, x @ v["a"], layers(v))
        return h @ v["b"]

    variables = weights(a=(4, 6), b=(6, 3), **STACK)
    graph = alignment.trace(apply, variables, X)
    (unit,) = (node for node in graph.nodes.values() if node.index)
    steps, stream = unit.index[0], alignment.Node("stream", 6, "permutation", unit.index, unit.copies)
    axes = {**graph.axes, "up": (*graph.axes["up"][:1], in_("stream", 6), graph.axes["up"][2])}
    axes["down"] = (*graph.axes["down"][:2], out("stream", 6))
    wrong = dataclasses.replace(graph, nodes={unit.name: unit, "stream": stream}, axes=axes)
    assert graph.axes["up"][0] == Fixed(3, steps)
    assert alignment.verify(apply, wrong, variables, X, key=KEY) > 1e-2


def test_shared_weights_of_a_step_have_one_map():
    def apply(v, x):
        h, _ = jax.lax.scan(lambda h, _: step(h, v), x @ v["a"], None, length=3)
        return h @ v["b"]

    assert sound(apply, weights(a=(4, 6), up=(6, 5), down=(5, 6), b=(6, 3))) == {"a": (6, "linear"), "up": (5, "scale")}


def test_units_of_a_step_that_meet_a_shared_weight_have_one_map():
    """Stacked kernels into a shared one: what is inside the step would have to agree with it in every step."""

    def apply(v, x):
        h, _ = jax.lax.scan(lambda h, up: (h + jnp.tanh(h @ up) @ v["down"], None), x @ v["a"], v["up"])
        return h @ v["b"]

    table = sound(apply, weights(a=(4, 6), up=(3, 6, 5), down=(5, 6), b=(6, 3)))
    assert sorted(table.values(), key=str) == [(5, "permutation"), (6, "linear")]


def test_stacked_weights_that_are_also_read_outside_of_the_loop():
    """The mean kernel of all layers knows no steps."""

    def apply(v, x):
        h, _ = jax.lax.scan(step, x @ v["a"], layers(v))
        return (h + jax.nn.relu(h @ v["up"].mean(0)) @ v["c"]) @ v["b"]

    table = sound(apply, weights(a=(4, 6), b=(6, 3), c=(5, 6), **STACK))
    assert sorted(table.values(), key=str) == [(5, "scale"), (6, "linear")]


def test_loops_in_loops():
    """Two groups of three layers, each group with a gate of its own."""

    def group(h, w):
        h, _ = jax.lax.scan(step, h, layers(w))
        return h + jnp.tanh(h @ w["in"]) @ w["out"], None

    def apply(v, x):
        h, _ = jax.lax.scan(group, x @ v["a"], v["groups"])
        return h @ v["b"]

    shapes = {**{name: (2, *shape) for name, shape in STACK.items()}, "in": (2, 6, 4), "out": (2, 4, 6)}
    graph = alignment.trace(apply, variables := {**weights(a=(4, 6), b=(6, 3)), "groups": weights(**shapes)}, X)
    found = {(node.size, node.group, node.copies) for node in graph.nodes.values()}
    assert found == {(6, "linear", ()), (5, "scale", (2, 3)), (4, "permutation", (2,))}
    assert alignment.verify(apply, graph, variables, X, key=KEY) < 1e-5
    unit, gate = (next(n for n in graph.nodes.values() if n.size == size) for size in (5, 4))
    assert unit.index[0] == gate.index[0]
    features = alignment.capture(apply, graph, variables, X).nodes
    assert features[unit.name].shape == (2, 3, 8, 5)
    assert features[gate.name].shape == (2, 8, 4)
    h = np.asarray(X @ variables["a"])
    for g, k in np.ndindex(2, 3):
        w = {name: np.asarray(x[g]) for name, x in variables["groups"].items()}
        inside = np.maximum(h @ w["up"][k], 0)
        np.testing.assert_allclose(features[unit.name][g, k], inside, atol=1e-4)
        h = h + inside @ w["down"][k]
        if k == 2:
            np.testing.assert_allclose(features[gate.name][g], np.tanh(h @ w["in"]), atol=1e-4)
            h = h + np.tanh(h @ w["in"]) @ w["out"]


def test_outputs_of_every_step_carry_the_node_of_the_carry():
    def apply(v, x):
        def cell(h, now):
            h = jnp.tanh(h @ v["again"] + jnp.broadcast_to(now, h.shape))
            return h, h

        last, every = jax.lax.scan(cell, jnp.zeros((8, 6)), v["inputs"])
        return (last + every.mean(0)) @ v["b"] + (every @ v["c"]).sum(0) + x @ v["d"]

    table = sound(apply, weights(again=(6, 6), inputs=(3, 6), b=(6, 3), c=(6, 3), d=(4, 3)))
    assert list(table.values()) == [(6, "permutation")]


@pytest.mark.parametrize(("start", "group"), [(0.0, "linear"), (1.0, "permutation")])
def test_a_carry_that_begins_as_a_constant(start, group):
    """Anything may act on zeros, permutations only on ones."""

    def apply(v, x):
        h, _ = jax.lax.scan(lambda h, w: (h + x @ w, None), jnp.full((8, 6), start), v["a"])
        return h @ v["b"]

    assert list(sound(apply, weights(a=(3, 4, 6), b=(6, 3))).values()) == [(6, group)]


def test_a_carry_that_is_reset_to_a_constant():
    def apply(v, x):
        def body(carry, w):
            h, last = carry
            return (jnp.ones_like(h), h + x @ w + last), None

        (_, h), _ = jax.lax.scan(body, (x @ v["b"], jnp.zeros((8, 6))), v["a"])
        return h @ v["c"]

    assert set(sound(apply, weights(a=(3, 4, 6), b=(4, 6), c=(6, 3))).values()) == {(6, "permutation")}


def test_parts_of_a_carry_that_change_places_are_one_node():
    def apply(v, x):
        (h, g), _ = jax.lax.scan(lambda c, _: ((c[1], jnp.tanh(c[0])), None), (x @ v["a"], x @ v["b"]), None, length=3)
        return h @ v["c"] + g @ v["d"]

    assert sound(apply, weights(a=(4, 6), b=(4, 6), c=(6, 3), d=(6, 3))) == {"a": (6, "permutation")}


def test_a_square_that_is_carried_or_stacked_is_settled():
    """Only a sum right after it knows it for a squared length."""

    def apply(v, x):
        def body(total, w):
            squares = jnp.square(x @ w)
            return total + squares.sum(), squares

        total, squares = jax.lax.scan(body, jnp.float32(0), v["a"])
        return squares.sum((0, 2))[:, None] * (x @ v["b"]) + total

    table = sound(apply, weights(a=(3, 4, 6), b=(4, 3)))
    assert list(table.values()) == [(6, "permutation", {"a[0]": 3})]


@pytest.mark.parametrize(
    "length",
    [
        0,
        1,
    ],
)
def test_loops_of_no_step_or_one(length):
    def apply(v, x):
        h, _ = jax.lax.scan(step, x @ v["a"], layers(v))
        return h @ v["b"]

    stack = {name: data(length, *shape[1:]) for name, shape in STACK.items()}
    table = sound(apply, {**weights(a=(4, 6), b=(6, 3)), **stack})
    assert table["a"] == (6, "linear")
    if length:
        assert sorted(map(str, table.values())) == ["(5, 'scale')", "(6, 'linear')"]


# --------------------------------------------------------------------------------------------------------------- while


def counted_loop(body, h, trips):
    """A while loop, whatever `trips` is."""
    return jax.lax.while_loop(lambda s: s[0] < trips, lambda s: (s[0] + 1, body(s[1])), (0, h))[1]


def test_the_state_of_a_while_loop_has_one_map():
    def apply(v, x):
        h = counted_loop(lambda h: h + jax.nn.relu(h @ v["up"]) @ v["down"], x @ v["a"], 3)
        return h @ v["b"]

    variables = weights(a=(4, 6), up=(6, 5), down=(5, 6), b=(6, 3))
    assert sorted(sound(apply, variables).values()) == [(5, "scale"), (6, "linear")]
    graph = alignment.trace(apply, variables, X)
    assert set(graph.taps) == {"a"}  # what is inside runs a number of times that is not known
    assert alignment.capture(apply, graph, variables, X).nodes["a"].shape == (8, 6)


def test_inside_a_while_loop_weights_produce_what_they_produce():
    """Roles and names: `up` makes the units that `down` consumes, although `down` comes first in the alphabet."""

    def apply(v, x):
        h = counted_loop(lambda h: h + jax.nn.relu(h @ v["up"]) @ v["down"], x @ v["a"], 3)
        return h @ v["b"]

    graph = alignment.trace(apply, weights(a=(4, 6), up=(6, 5), down=(5, 6), b=(6, 3)), X)
    assert graph.axes["up"] == (in_("a", 6), out("up", 5))
    assert graph.axes["down"] == (in_("up", 5), out("a", 6))


def test_a_condition_that_reads_the_state_restricts_it():
    """The largest unit decides when to stop: permutations and common factors would do, rotations would not."""

    def apply(v, x):
        h = jax.lax.while_loop(lambda h: jnp.max(h) > 1, lambda h: 0.5 * h, x @ v["a"])
        return h @ v["b"]

    assert sound(apply, weights(a=(4, 6), b=(6, 3)))["a"] in ((6, "permutation"), (6, "scale"))


def test_layers_read_by_a_counter_are_told_apart_by_none():
    """fori_loop with an unknown number of trips: any step may read any layer, so all of them have one map."""

    def apply(v, x):
        def body(k, h):
            up, down = (jax.lax.dynamic_index_in_dim(v[name], k, keepdims=False) for name in ("up", "down"))
            return h + jax.nn.relu(h @ up) @ down

        trips = 2 + (x.sum() > 1e9).astype(jnp.int32)
        return jax.lax.fori_loop(0, trips, body, x @ v["a"]) @ v["b"]

    table = sound(apply, weights(a=(4, 6), b=(6, 3), **STACK))
    assert sorted(table.values()) == [(5, "scale"), (6, "linear")]


# ---------------------------------------------------------------------------------------------------------------- cond


def test_branches_end_in_one_node_and_keep_their_own_inside():
    def apply(v, x):
        branches = [lambda h, up=up, down=down: h + jnp.tanh(h @ v[up]) @ v[down] for up, down in (("c", "d"), ("e", "f"))]
        h = x @ v["a"]
        first, second = (jax.lax.cond(pick, *branches, h) for pick in (x.sum() > 0, x.sum() <= 0))  # both run
        return (first + second) @ v["b"]

    variables = weights(a=(4, 6), c=(6, 5), d=(5, 6), e=(6, 7), f=(7, 6), b=(6, 3))
    assert sound(apply, variables) == {"a": (6, "linear"), "c": (5, "permutation"), "e": (7, "permutation")}
    graph = alignment.trace(apply, variables, X)
    assert set(graph.taps) == {"a"}
    assert graph.sites and {site.path for site in graph.sites} == {"a", "b"}


def choosing(others, which):
    def apply(v, x):
        h = x @ v["a"]
        k = which + (x.sum() > 1e9).astype(jnp.int32)
        return jax.lax.switch(k, [*others, lambda h: h], h) @ v["b"]

    return apply


@pytest.mark.parametrize(
    ("others", "group"),
    [
        ([jnp.zeros_like], "linear"),
        ([jnp.ones_like], "permutation"),
        ([jnp.ones_like, jnp.zeros_like], "permutation"),
        ([jnp.zeros_like, jnp.ones_like], "permutation"),
        ([lambda h: 2 * h, lambda h: -h], "linear"),
        ([lambda h: 2 * h, jax.nn.relu], "scale"),
    ],
    ids=["zeros", "ones", "ones, zeros", "zeros, ones", "multiples", "relu"],
)
def test_constants_among_the_branches(others, group):
    """Whatever is chosen, its units must be those of the features."""
    variables = weights(a=(4, 6), b=(6, 3))
    for which in range(len(others) + 1):
        assert sound(choosing(others, which), variables) == {"a": (6, group)}


def test_an_index_that_is_an_extremum_holds_the_units():
    def apply(v, x):
        h = x @ v["a"]
        return jax.lax.switch(jnp.argmax(h.sum(0)) % 2, [lambda h: h, lambda h: -h], h) @ v["b"]

    assert sound(apply, weights(a=(4, 6), b=(6, 3))) == {}


def test_loops_and_branches_under_jit_and_vmap():
    """As users write them: a function of one row, with everything inside."""

    def one(v, row):
        def body(h, w):
            return h + jax.lax.cond(h.sum() > 0, jnp.tanh, jnp.sin, h @ w["up"]) @ w["down"], None

        h, _ = jax.lax.scan(jax.checkpoint(body), row @ v["a"], layers(v))
        return h @ v["b"]

    apply = jax.jit(jax.vmap(one, in_axes=(None, 0)))
    variables = weights(a=(4, 6), b=(6, 3), **STACK)
    graph = alignment.trace(apply, variables, X)
    assert sorted(networks.table(graph).values(), key=str) == [(5, "permutation", {"up[0]": 3}), (6, "permutation")]
    assert alignment.verify(apply, graph, variables, data(8, 4, seed=3), key=KEY) < 1e-5
    assert isinstance(graph.axes["a"][1], NodeAxis)
