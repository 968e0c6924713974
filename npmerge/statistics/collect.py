"""Statistics that merges need, and `collect`, the one pass over data that gathers them."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignment.activations.moments import Joint, JointMoments, Moments, NodeMoments, Statistic
from alignment.base import functions_of, graphs_of, of_one_width
from alignment.checks import check_kinds, check_list, check_number, kind_of
from alignment.graph import Graph, PyTree, signature
from npmerge.base import Merge
from npmerge.batches import check_inputs, measured, with_mask
from npmerge.memory import bytes_of, peak_bytes
from npmerge.statistics.collected import Collected
from npmerge.statistics.examples import Examples, Run
from npmerge.statistics.fisher_information import DiagonalFisher
from npmerge.statistics.input_grams import InputGram, SiteGram
from npmerge.statistics.kronecker import KroneckerFactors, SiteFactors

__all__ = [
    "DiagonalFisher",
    "Examples",
    "InputGram",
    "Joint",
    "JointMoments",
    "KroneckerFactors",
    "Moments",
    "NodeMoments",
    "SiteFactors",
    "SiteGram",
    "Statistic",
    "collect",
    "collect_each",
]


def collect(
    apply: Callable[..., PyTree] | Sequence[Callable[..., PyTree]],
    graph: Graph | Sequence[Graph],
    models: Sequence[PyTree],
    batches: Iterable[tuple],
    statistics: Iterable[Statistic | type[Statistic] | Merge],
    *,
    memory_limit: float = 16e9,
    progress: Callable[[int], Any] | None = None,
) -> Mapping[type, Any]:
    """Gather statistics of all models in one pass over the data, one jitted step per batch.

    Every model sees every batch; `collect_each` gives each its own. `NodeMoments` and `InputGram` take a forward pass of each
    model, `DiagonalFisher` and `KroneckerFactors` backward passes of each example: theirs say how many. A few hundred examples
    are what papers take.

    Args:
        apply: the network in evaluation mode, `apply(variables, inputs) -> outputs`. For networks with different
            numbers of outputs one for each, as for graph: `NodeMoments` and `JointMoments` measure those, of nodes with
            different widths only `JointMoments`.
        graph: its traced graph.
        models: their variables.
        batches: `(inputs, targets)` or `(inputs, targets, mask)`, as `npmerge.batches.counted` reads them. Targets are only
            read by statistics that need them.
        statistics: what to gather: values such as `NodeMoments()`, classes for their defaults, or merges for what they need; a
            value goes before the default of its class.
        memory_limit: bytes that the pass may hold, as predicted from shapes: before it starts, and before a batch of new ones.
            Data that `Examples` keeps count as they come; the passes of merges that read them have the same limit.
        progress: called after each batch with the number of batches that are done.

    Returns:
        For each statistic's type, what its `finalise` returns. The mapping is a tree to JAX.

    Raises:
        ValueError: no models, one statistic asked for by different values, no batches or padding alone, inputs that the network
            does not take, or a pass that would hold more than `memory_limit`.
    """
    call = "collect takes (apply, graph, models, batches, [statistics])"
    check_kinds(call, (apply, Callable | Sequence), (graph, Graph | Sequence), (models, object), (batches, Iterable))
    wanted = statistics_of(statistics)
    if len({type(s) for s in wanted}) < len(wanted):
        raise ValueError(f"one statistic of each type, got {wanted}")
    function, of, networks = _networks(apply, graph, models, wanted)
    check_number("memory_limit", memory_limit, positive=True)
    states: tuple | None = None
    some = False
    summed = tuple(s for s in wanted if not isinstance(s, Examples))
    kept: list[Run] = []
    needed: dict[Any, Bytes] = {}
    for count, batch in enumerate(map(with_mask, measured(batches, masks=True)), 1):
        some = some or len(batch) == 2 or bool(np.any(batch[2]))
        if (shapes := signature(batch)) not in needed:
            for network in networks:
                check_inputs(network, batch[0])
            needed[shapes] = _bytes(function, of, summed, tuple(models), batch)
        kept += [s.measure(function, of, models, batch) for s in wanted if isinstance(s, Examples)]
        _check_memory(memory_limit, wanted, needed[shapes], bytes_of([run.tasks[0] for run in kept]))
        new = _measure(function, of, summed, tuple(models), batch)
        states = new if states is None else _combine(summed, states, _beside(new, states))
        if progress is not None:
            jax.block_until_ready(states)
            progress(count)
    if states is None:
        raise ValueError("collect needs data: got no batches")
    if not some:
        raise ValueError("collect needs data: all that the batches hold is padding, by their masks or targets below zero")
    found = Collected(zip(map(type, summed), _finalised(summed, states), strict=True))
    if kept:
        found[Examples] = replace(functools.reduce(Examples().combine, kept), memory_limit=memory_limit)
    return found


def _networks(apply: Any, graph: Any, models: Sequence[PyTree], wanted: tuple[Statistic, ...]) -> tuple[Any, Any, list[tuple]]:
    """The function and the graph, one for each model if several were given, and each network as (function, graph, variables).

    Raises ValueError unless they fit each other, and the statistics.
    """
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
    return apply, graph, list(zip(functions_of(apply, models), graphs, models, strict=True))


def collect_each(
    apply: Callable[..., PyTree],
    graph: Graph,
    models: Sequence[PyTree],
    tasks: Sequence[Iterable[tuple]],
    statistics: Iterable[Statistic | type[Statistic] | Merge],
    *,
    memory_limit: float = 16e9,
    progress: Callable[[int], Any] | None = None,
) -> Mapping[type, Any]:
    """`collect` with data of its own for each model, as Fisher merging and RegMean want it: that which it was trained on.

    Args:
        apply: as for `collect`, and so graph, statistics and memory_limit.
        graph: of all models.
        models: their variables.
        tasks: for each model its batches.
        statistics: what to gather; none that relate the models to each other, as `NodeMoments` and `JointMoments` do.
        memory_limit: for each model.
        progress: called after each batch with the number of batches that are done, of all models.

    Raises:
        ValueError: as `collect`, another number of tasks than of models, or such statistics.
    """
    check_list(models)
    check_list(tasks, "tasks, the batches of each model")
    if not models:
        raise ValueError("collect_each needs at least one model, got an empty list")
    if len(models) != len(tasks):
        raise ValueError(f"expected the batches of each model: got {len(tasks)} for {len(models)} models")
    wanted = statistics_of(statistics)
    if odd := [type(s).__name__ for s in wanted if isinstance(s, JointMoments | NodeMoments)]:
        raise ValueError(f"{odd[0]} relates the models to each other, on the same data: use collect")
    done = itertools.count(1)
    tell = None if progress is None else lambda _: progress(next(done))
    found = [
        collect(apply, graph, [model], batches, wanted, memory_limit=memory_limit, progress=tell)
        for model, batches in zip(models, tasks, strict=True)
    ]
    return Collected((kind, _joined([each[kind] for each in found])) for kind in found[0])


def _joined(values: Sequence[Any]) -> Any:
    """What was measured on one model each, as if on all of them."""
    if isinstance(values[0], Run):
        return replace(values[0], tasks=tuple(batches for run in values for batches in run.tasks))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *values)


class Bytes(NamedTuple):
    """What one step holds, and the states that are added up."""

    step: int
    state: int


def _bytes(apply: Any, graph: Any, summed: tuple[Statistic, ...], models: tuple, batch: tuple) -> Bytes:
    if not summed:
        return Bytes(bytes_of((models, batch)), 0)
    traced = _measure.trace(apply, graph, summed, models, batch)
    return Bytes(peak_bytes(traced.jaxpr.jaxpr), bytes_of(traced.out_info))


def _check_memory(limit: float, wanted: tuple[Statistic, ...], needed: Bytes, data: int) -> None:
    """Raise ValueError if one step, the states that are added up and the data that are kept would take more bytes."""
    state = needed.state
    total = needed.step + 2 * state + data  # what was measured, and both in one
    if total > limit:
        names = ", ".join(type(s).__name__ for s in wanted)
        fix = "smaller batches or a smaller microbatch" if 3 * state <= limit else "fewer models at once (collect_each)"
        fix, of_data = ("fewer examples", f" and {data / 1e9:.3g} GB of data") if 2 * data > total else (fix, "")
        raise ValueError(
            f"{names} would hold {total / 1e9:.3g} GB, {state / 1e9:.3g} GB of statistics{of_data} among them, more than "
            f"memory_limit={limit:g} bytes: use {fix}, or raise memory_limit"
        )


def statistics_of(statistics: Iterable[Statistic | type[Statistic] | Merge]) -> tuple[Statistic, ...]:
    """Each once; classes stand for their defaults where there is no value, merges for the classes that they need."""
    if not isinstance(statistics, Iterable) or isinstance(statistics, str):
        raise ValueError(f"collect takes a list of statistics such as [NodeMoments()], got {kind_of(statistics)}")
    asked: list[Any] = [s for given in statistics for s in (given.needs if isinstance(given, Merge) else (given,))]
    known = {type(s) for s in asked if isinstance(s, Statistic)}
    of_class = [s for s in asked if not (isinstance(s, type) and s in known)]
    values = [s() if isinstance(s, type) and issubclass(s, Statistic) else s for s in of_class]
    if odd := [s for s in values if not isinstance(s, Statistic)]:
        raise ValueError(f"collect takes a list of statistics such as [NodeMoments()], got {kind_of(odd[0])} in it")
    return tuple(dict.fromkeys(values))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measure(apply: Any, graph: Any, statistics: tuple[Statistic, ...], models: tuple, batch: tuple) -> tuple:
    return tuple(s.measure(apply, graph, models, batch) for s in statistics)


def _beside(new: tuple, states: tuple) -> tuple:
    """What was measured on other devices, brought to those of the states so far."""
    return jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), new, states)


@functools.partial(jax.jit, static_argnums=0)
def _combine(statistics: tuple[Statistic, ...], states: tuple, new: tuple) -> tuple:
    return tuple(s.combine(a, b) for s, a, b in zip(statistics, states, new, strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _finalised(statistics: tuple[Statistic, ...], states: tuple) -> tuple:
    return tuple(s.finalise(state) for s, state in zip(statistics, states, strict=True))
