"""The arc diagram of a graph."""

import npmerge as nm
from npmerge.models import Gpt2, abstract, example

CONFIG = Gpt2(vocabulary=11, width=8, layers=2, heads=2, hidden=6, length=5)


def test_every_node_is_a_labelled_point_in_the_order_of_the_network():
    network = abstract(CONFIG)
    graph = nm.trace(network.apply, network.variables, example(CONFIG))
    (axes,) = nm.graph_figure(graph).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == "inputs"
    assert texts[-1] == "outputs"
    assert [text.split()[0] for text in texts[1:-1]] == list(graph.nodes)
    assert "2 x 4" in texts[1 + list(graph.nodes).index("params/blocks/0/attention/qkv/kernel#2")]
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"permutation", "linear"}
    styles = [patch.get_linestyle() for patch in axes.patches]
    assert {"-", ":"} <= set(styles)  # down the network, and back into the stream


def test_it_is_drawn_without_a_display(tmp_path):
    network = abstract(CONFIG)
    graph = nm.trace(network.apply, network.variables, example(CONFIG))
    nm.graph_figure(graph).savefig(tmp_path / "graph.png")
    assert (tmp_path / "graph.png").stat().st_size > 5_000
