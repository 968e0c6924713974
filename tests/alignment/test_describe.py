"""What people see of a graph: the table, the language of Graphviz, the edges."""

import jax.numpy as jnp

import alignment
from alignment.describe import INPUTS, OUTPUTS, Edge, edges
from tests.alignment import networks


def test_the_table_says_where_copies_are_and_which_line_holds_an_axis():
    text = str(networks.network("attention").graph)
    (row,) = [line for line in text.splitlines() if line.startswith("value")]
    assert row.split()[:3] == ["value", "2", "x"]
    assert "  in each of query#1" in text
    assert "1 x output, first at alignment/networks.py" in text
    assert "1 x input, first at alignment/networks.py" in text


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
