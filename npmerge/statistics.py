"""Statistics that merges need, and `collect`, the one pass over data that gathers them."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from alignment.base import functions_of, graphs_of, of_one_width
from alignment.checks import check_kinds, check_list, kind_of
from alignment.graph import Graph, PyTree
from alignment.moments import Joint, JointMoments, Moments, NodeMoments, Statistic
from npmerge.batches import measured
from npmerge.fisher_information import DiagonalFisher

__all__ = ["DiagonalFisher", "Joint", "JointMoments", "Moments", "NodeMoments", "Statistic", "collect"]


def collect(
    apply: Callable[..., PyTree] | Sequence[Callable[..., PyTree]],
    graph: Graph | Sequence[Graph],
    models: Sequence[PyTree],
    batches: Iterable[tuple],
    statistics: Iterable[Statistic | type[Statistic]],
) -> Mapping[type, Any]:
    """Gather statistics of all models in one pass over the data, one jitted step per batch.

    Args:
        apply: the network in evaluation mode, `apply(variables, inputs) -> outputs`. For networks with different
            numbers of outputs one for each, as for graph: `NodeMoments` and `JointMoments` measure those, of nodes with
            different widths only `JointMoments`.
        graph: its traced graph.
        models: their variables.
        batches: `(inputs, targets)` tuples; every model sees every batch. Targets are only read by statistics that need them.
        statistics: what to gather: values such as `NodeMoments()`, or classes for their defaults (a merge's `needs`).

    Returns:
        For each statistic's type, what its `finalise` returns.

    Raises:
        ValueError: no models, no statistics asked twice by different values, or no batches.
    """
    call = "collect takes (apply, graph, models, batches, [statistics])"
    check_kinds(call, (apply, Callable | Sequence), (graph, Graph | Sequence), (models, object), (batches, Iterable))
    wanted = _wanted(statistics)
    if len({type(s) for s in wanted}) < len(wanted):
        raise ValueError(f"one statistic of each type, got {wanted}")
    check_list(models)
    if not models:
        raise ValueError("collect needs at least one model, got an empty list")
    graphs = graphs_of(graph, models)
    for own, model in zip(graphs, models, strict=True):
        own.check(model)
    if not isinstance(graph, Graph) or isinstance(apply, Sequence):
        apply, graph = functions_of(apply, models), graphs
        if odd := [type(s).__name__ for s in wanted if not isinstance(s, JointMoments | NodeMoments)]:
            raise ValueError(f"{odd[0]} needs one function and one graph for all models: got one for each")
        for statistic in (s for s in wanted if isinstance(s, NodeMoments)):
            of_one_width(statistic, graph, models)
    states: tuple | None = None
    for batch in measured(batches):
        new = _measure(apply, graph, wanted, tuple(models), batch)
        states = new if states is None else _combine(wanted, states, new)
    if states is None:
        raise ValueError("collect needs data: got no batches")
    return {type(s): value for s, value in zip(wanted, _finalised(wanted, states), strict=True)}


def _wanted(statistics: Iterable[Statistic | type[Statistic]]) -> tuple[Statistic, ...]:
    """Each once; classes stand for their defaults."""
    if not isinstance(statistics, Iterable) or isinstance(statistics, str):
        raise ValueError(f"collect takes a list of statistics such as [NodeMoments()], got {kind_of(statistics)}")
    values = [s() if isinstance(s, type) and issubclass(s, Statistic) else s for s in statistics]
    if odd := [s for s in values if not isinstance(s, Statistic)]:
        raise ValueError(f"collect takes a list of statistics such as [NodeMoments()], got {kind_of(odd[0])} in it")
    return tuple(dict.fromkeys(values))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measure(apply: Any, graph: Any, statistics: tuple[Statistic, ...], models: tuple, batch: tuple) -> tuple:
    return tuple(s.measure(apply, graph, models, batch) for s in statistics)


@functools.partial(jax.jit, static_argnums=0)
def _combine(statistics: tuple[Statistic, ...], states: tuple, new: tuple) -> tuple:
    return tuple(s.combine(a, b) for s, a, b in zip(statistics, states, new, strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _finalised(statistics: tuple[Statistic, ...], states: tuple) -> tuple:
    return tuple(s.finalise(state) for s, state in zip(statistics, states, strict=True))
