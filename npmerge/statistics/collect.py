"""Statistics that merges need, and `collect`, the one pass over data that gathers them."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from alignment.activations.moments import Joint, JointMoments, Moments, NodeMoments, Statistic
from alignment.checks import check_kinds, check_list, check_number, kind_of
from alignment.graph import Graph, PyTree
from npmerge.base import Merge
from npmerge.batches import measured
from npmerge.masks import with_mask
from npmerge.statistics.collected import Collected
from npmerge.statistics.examples import Examples, Run
from npmerge.statistics.fisher_information import DiagonalFisher
from npmerge.statistics.input_grams import InputGram, SiteGram
from npmerge.statistics.kronecker import KroneckerFactors, SiteFactors
from npmerge.statistics.one_pass import Pass, networks_of

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
        batches: `(inputs, targets)` or `(inputs, targets, mask)`, as `npmerge.masks.counted` reads them. Targets are only
            read by statistics that need them.
        statistics: what to gather: values such as `NodeMoments()`, classes for their defaults, or merges for what they need; a
            value goes before the default of its class.
        memory_limit: bytes that the pass may hold, as predicted from shapes: before it starts, and before a batch of new ones.
            Data that `Examples` keeps count as they come; the passes of merges that read them have the same limit.
        progress: called after each batch with the number of batches that are done, as
            `lambda done: print(f"batch {done} of {len(batches)}")` can be.

    Returns:
        For each statistic's type, what its `finalise` returns. The mapping is a tree to JAX.

    Raises:
        ValueError: no models, one statistic asked for by different values, no batches or padding alone, inputs that the network
            does not take, or a pass that would hold more than `memory_limit`.

    Example:
        >>> apply, x = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"], jnp.eye(2)
        >>> models = [{"w": s * jnp.eye(2), "u": jnp.ones((2, 2))} for s in (1.0, 3.0)]
        >>> graph = nm.trace(apply, models[0], x)
        >>> stats = nm.collect(apply, graph, models, [(x, None)], [nm.RegMean(), nm.NodeMoments()])
        >>> print(*(kind.__name__ for kind in stats))  # RegMean asked for the first
        InputGram NodeMoments
        >>> stats[nm.InputGram]["u"].gram.tolist()  # (models, rows, rows)
        [[[0.5, 0.0], [0.0, 0.5]], [[4.5, 0.0], [0.0, 4.5]]]
    """
    call = "collect takes (apply, graph, models, batches, [statistics])"
    check_kinds(call, (apply, Callable | Sequence), (graph, Graph | Sequence), (models, object), (batches, Iterable))
    wanted = statistics_of(statistics)
    if len({type(s) for s in wanted}) < len(wanted):
        raise ValueError(f"one statistic of each type, got {wanted}")
    networks = networks_of(apply, graph, models, wanted)
    check_number("memory_limit", memory_limit, positive=True)
    found = Pass(networks, wanted, memory_limit)
    for count, batch in enumerate(map(with_mask, measured(batches, masks=True)), 1):
        found.add(batch)
        if progress is not None:
            jax.block_until_ready(found.states)
            progress(count)
    return found.finalised()


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

    Example:
        >>> apply, models = lambda v, x: x @ v["w"], [{"w": jnp.eye(2)}, {"w": jnp.eye(2)}]
        >>> tasks = [[(jnp.array([[1.0, 0.0]]), None)], [(jnp.array([[0.0, 1.0]]), None)]]
        >>> graph = nm.trace(apply, models[0], tasks[0][0][0])
        >>> stats = nm.collect_each(apply, graph, models, tasks, [nm.InputGram()])
        >>> stats[nm.InputGram]["w"].gram.tolist()  # of each model on its own data
        [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]
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
