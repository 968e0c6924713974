"""What is one for all models or one for each: their graphs, and their functions."""

from collections.abc import Callable, Sequence
from typing import Any

from alignment.checks import kind_of
from alignment.graph import Graph, PyTree

Graphs = Graph | Sequence[Graph]


def graphs_of(graph: Graphs, models: Sequence[PyTree]) -> tuple[Graph, ...]:
    """One graph for each model. Raises ValueError for another number of them, or graphs that do not have the same nodes."""
    graphs = (graph,) * len(models) if isinstance(graph, Graph) else tuple(graph)
    for own in graphs:
        if not isinstance(own, Graph):
            raise ValueError(f"expected a graph, or one for each model: got {kind_of(own)}")
    if len(graphs) != len(models):
        raise ValueError(f"expected a graph, or one for each of {len(models)} models: got {len(graphs)}")
    for k, own in enumerate(graphs):
        if own.nodes.keys() != graphs[0].nodes.keys():
            odd = sorted(own.nodes.keys() ^ graphs[0].nodes.keys())
            raise ValueError(f"model {k} is of another architecture than model 0: only one of them has the node {odd[0]!r}")
    return graphs


def functions_of(apply: Callable | Sequence[Callable], models: Sequence[PyTree]) -> tuple[Callable, ...]:
    """One function for each model. Raises ValueError for another number of them, or what is no function."""
    functions = tuple(apply) if isinstance(apply, Sequence) else (apply,) * len(models)
    if odd := [f for f in functions if not callable(f)]:
        raise ValueError(f"expected a function, or one for each model: got {kind_of(odd[0])}")
    if len(functions) != len(models):
        raise ValueError(f"expected a function, or one for each of {len(models)} models: got {len(functions)}")
    return functions


def of_one_width(asking: Any, graph: Graphs, models: Sequence[PyTree]) -> Graph:
    """The graph of all models. Raises ValueError, with the kind of who asks, for graphs whose nodes have different widths."""
    first, *others = graphs_of(graph, models)
    for k, other in enumerate(others, 1):
        for name, node in first.nodes.items():
            if other.nodes[name].size != node.size:
                raise ValueError(
                    f"{type(asking).__name__} needs models of one width: node {name!r} has {node.size} units in model 0 and "
                    f"{other.nodes[name].size} in model {k}"
                )
    return first
