"""Moments that were collected, looked up and checked: are they there, finite, and of these models?"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.activations.moments import Joint, JointMoments, Moments, NodeMoments, Statistic, laid_out
from alignment.checks import kind_of
from alignment.graph import Graph, PyTree


def check_moments(moments: Any, name: str, kind: type[Moments | Joint] = Moments) -> None:
    """Raise ValueError, with the name of who asks, unless these are finite moments of a kind, by node."""
    if not isinstance(moments, Mapping) or NodeMoments in moments:
        got = "all that was collected" if isinstance(moments, Mapping) else kind_of(moments)
        raise ValueError(f"{name} takes the moments of every node, got {got}: give it stats[NodeMoments]")
    for node, m in moments.items():
        if not isinstance(m, kind):
            raise ValueError(f"{name} takes {kind.__name__} of every node, got {kind_of(m)} of {node!r}")
        if not all(np.isfinite(np.asarray(x)).all() for x in m):
            raise ValueError(f"{name} got non-finite moments of node {node!r}: is there a NaN in the data?")


def node_moments(
    stats: Mapping[type, Any] | None, asking: Any, graph: Graph, models: Sequence[PyTree]
) -> Mapping[str, Moments]:
    """The NodeMoments in `stats`. Raises ValueError if they are missing, not finite, or of other models than these.

    Warns:
        UserWarning: if the graph has nodes without a tap (only ever seen inside products): they stay as they are.
    """
    name, moments = type(asking).__name__, _given(stats, asking, NodeMoments)
    check_moments(moments, name)
    for node in dict.fromkeys([*graph.taps, *moments]):
        if node not in moments or node not in graph.nodes:
            raise ValueError(f"{name} got statistics of another graph: only one of them has the node {node!r}")
        shape, expected = moments[node].mean.shape, laid_out(graph, graph.nodes[node])
        if shape[0] != len(models):
            raise ValueError(f"{name} got {len(models)} models, but the statistics are of {shape[0]}")
        if shape[1:] != expected:
            raise ValueError(f"{name} got statistics of other networks: {node!r} has {shape[1:]} units, the graph {expected}")
    _warn_of_untapped(asking, graph, graph.nodes)
    return moments


def joint_moments(
    stats: Mapping[type, Any] | None, asking: Any, graphs: Sequence[Graph], nodes: Iterable[str]
) -> dict[str, Joint]:
    """The JointMoments in `stats` of some nodes, one graph for each model. Raises and warns as `node_moments` does."""
    every: Mapping[str, Joint] = _given(stats, asking, JointMoments)
    moments = {name: every[name] for name in nodes if name in every}
    check_moments(moments, type(asking).__name__, Joint)
    taken = set()
    for name, m in moments.items():
        units, got = [laid_out(graph, graph.nodes[name])[-1] for graph in graphs], m.mean.shape[-1]
        if len(set(units)) == 1:
            taken.add(got / units[0])
        elif got != sum(units):
            expected = f"{' + '.join(map(str, units))} units at node {name!r}"
            raise ValueError(f"{type(asking).__name__} got models with {expected}, but the statistics are of {got}")
    if wrong := taken - {len(graphs)}:
        raise ValueError(f"{type(asking).__name__} got {len(graphs)} models, but the statistics are of {min(wrong):g}")
    _warn_of_untapped(asking, graphs[0], nodes)
    return moments


def _given(stats: Mapping[type, Any] | None, asking: Any, kind: type[Statistic]) -> Any:
    """The moments of some kind."""
    name = type(asking).__name__
    if stats is None or kind not in stats:
        raise ValueError(
            f"{name} needs activations: pass stats=npmerge.collect(apply, graph, models, batches, [{kind.__name__}()])"
        )
    return stats[kind]


def _warn_of_untapped(asking: Any, graph: Graph, nodes: Iterable[str]) -> None:
    matched = {index for node in graph.taps for index in graph.nodes[node].index}  # through what is inside them
    if missing := [node for node in nodes if node not in graph.taps and node not in matched]:
        name = type(asking).__name__
        warnings.warn(f"{name} leaves nodes without activations as they are: {', '.join(missing)}", stacklevel=5)
