"""What people see of a graph: the table, the language of Graphviz, the edges."""

import dataclasses

import jax.numpy as jnp

import alignment
from alignment.describe import INPUTS, OUTPUTS, Edge, edges, held
from tests.alignment import networks

TABLE = """
node   size  group        tensors
---------------------------------------------
two#1  3     permutation  a[0] in
                          two[2] out
two#2  3     permutation  b[0] in
                          two[2] out
a      5     linear       a[1] out
                          join[0] 0:5 in
                          place[1] out
b      6     linear       b[1] out
                          join[0] 5:11 in
join   4     permutation  join[1] 0:4 out
                          out[0] fixed 2 x in

axes held fixed (graph.pinned):
  3 x input
  3 x output
  2 x its places are told apart by slices
"""


def of_every_label(v, x):
    """A stack of two layers, a concatenation with the inputs, features beside outputs, an image that is flattened."""
    a, b = jnp.tanh(x @ v["two"][0]), jnp.tanh(x @ v["two"][1])
    joined = jnp.concatenate([a @ v["a"] + jnp.broadcast_to(v["place"][0], (2, 5)), b @ v["b"], x], 1) @ v["join"]
    return jnp.tanh(joined[:, :4]).reshape(-1, 8) @ v["out"], joined[:, 4:]


def graph_of_every_label():
    shapes = {"two": (2, 4, 3), "a": (3, 5), "b": (3, 6), "place": (2, 5), "join": (15, 6), "out": (8, 2)}
    return alignment.trace(of_every_label, {name: jnp.ones(shape) for name, shape in shapes.items()}, jnp.ones((2, 4)))


def test_the_table_names_the_part_of_an_axis_that_a_node_fills():
    graph = graph_of_every_label()
    without_lines = dataclasses.replace(graph, pinned=tuple(dataclasses.replace(pin, source="") for pin in graph.pinned))
    assert str(without_lines) == TABLE.strip()
    assert held(dataclasses.replace(graph, pinned=())) == ["no axis is held fixed"]


def test_heads_and_their_units_on_one_axis():
    rows = str(networks.network("fused_attention").graph).splitlines()
    assert any(row.split("  ")[-1] == "mix[0] in x qkv#3:in" for row in rows)
    assert any(row.endswith("qkv[1] 0:6 qkv#1:out x out, 6:12 qkv#1:out x in") for row in rows)


def test_the_table_says_where_copies_are_and_which_line_holds_an_axis():
    text = str(networks.network("attention").graph)
    (row,) = [line for line in text.splitlines() if line.startswith("value")]
    assert row.split()[:3] == ["value", "2", "x"]
    assert "  in each of query#1" in text
    assert "1 x output, first at alignment/networks.py" in text
    assert "1 x input, first at alignment/networks.py" in text


def test_the_table_names_groups_before_the_channels_inside_them_and_all_parts_of_their_axis():
    """A group norm of four groups, the last two of which gate the first two: the tracer finds the channels first."""

    def gated(v, x):
        groups = (x @ v["in"] + v["bias"]).reshape(-1, 4, 3)
        groups = groups - groups.mean(-1, keepdims=True)
        value, gate = jnp.split(groups.reshape(-1, 12), 2, -1)
        return (value * jnp.tanh(gate)) @ v["out"]

    shapes = {"in": (2, 12), "bias": (1, 12), "out": (6, 2)}
    graph = alignment.trace(gated, {name: jnp.ones(shape) for name, shape in shapes.items()}, jnp.ones((1, 2)))
    rows = str(graph).splitlines()
    assert [row.split()[0] for row in rows if row.startswith("in#")] == ["in#1", "in#2"] != list(graph.nodes)
    assert rows[5].split("  ")[-1] == "bias[1] [in#1:out[0:2] | in#1:out[2:4]] x out"


def test_a_graph_without_nodes_says_so():
    graph = alignment.trace(lambda v, x: x * v["a"], {"a": jnp.ones((4,))}, jnp.ones((4,)))
    assert str(graph).startswith("no node can move (1 axes are held fixed")
    assert graph.to_dot().count("->") == 0


def test_edges_lead_from_what_a_tensor_reads_to_what_it_makes():
    assert edges(networks.network("mlp").graph) == [
        Edge(INPUTS, "first", "first/kernel"),
        Edge("second", OUTPUTS, "out/kernel"),
        Edge("first", "second", "second/kernel"),
    ]


def test_what_is_held_for_another_reason_reads_no_inputs_and_what_has_nodes_needs_none():
    """`place` is a table whose rows are told apart by slices; `join` reads inputs and makes outputs beside its nodes."""
    assert edges(graph_of_every_label()) == [
        Edge("two#1", "a", "a"),
        Edge("two#2", "b", "b"),
        Edge("a", "join", "join"),
        Edge("b", "join", "join"),
        Edge("join", OUTPUTS, "out"),
        Edge(INPUTS, "two#1", "two"),
        Edge(INPUTS, "two#2", "two"),
    ]


def test_what_is_inside_heads_stands_for_them_in_the_edges():
    found = {(e.source, e.target): e.path for e in edges(networks.network("attention").graph)}
    assert found["embed", "value"] == "value"
    assert found["value", "embed"] == "mix"
    assert not any("query#1" in pair for pair in found)


def test_dot_has_every_node_edge_and_index():
    graph = networks.network("attention").graph
    lines = [line.strip() for line in graph.to_dot().splitlines()]
    assert lines[0] == "digraph {"
    assert lines[-1] == "}"
    assert '"value" [label="value\\n2 x 4 linear"];' in lines
    assert '"query#1" -> "value" [style=dashed, arrowhead=none];' in lines
    assert '"inputs" -> "embed" [label="embed"];' in lines
    assert '"embed" -> "outputs" [label="head"];' in lines
