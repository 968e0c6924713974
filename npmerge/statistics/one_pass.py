"""The pass over data that gathers statistics: one compiled step for each batch, in as many bytes as it may hold."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from alignment.activations.moments import JointMoments, NodeMoments, Statistic
from alignment.checks import check_list
from alignment.graph import Graph, PyTree, signature
from alignment.per_model import functions_of, graphs_of, of_one_width
from npmerge.batches import check_inputs
from npmerge.memory import bytes_of, peak_bytes
from npmerge.statistics.collected import Collected
from npmerge.statistics.examples import Examples, Run


class Networks(NamedTuple):
    """The networks that are measured: `apply` and `graph` of all of them, or a tuple with one for each."""

    apply: Any
    graph: Any
    models: tuple[PyTree, ...]


def networks_of(apply: Any, graph: Any, models: Sequence[PyTree], wanted: tuple[Statistic, ...]) -> Networks:
    """The networks. Raises ValueError unless functions, graphs and models fit each other, and the statistics."""
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
    return Networks(apply, graph, tuple(models))


class Bytes(NamedTuple):
    """What one step holds, and the states that are added up."""

    step: int
    state: int


@dataclass
class Pass:
    """What one pass over data has found so far.

    Attributes:
        networks: that are measured.
        statistics: of them.
        memory_limit: bytes that the pass may hold.
        states: of the statistics that are added up.
        kept: data.
        some: whether there were data that are no padding.
        needed: what a step holds, for batches of each shape.
    """

    networks: Networks
    statistics: tuple[Statistic, ...]
    memory_limit: float
    states: tuple | None = None
    kept: list[Run] = field(default_factory=list)
    some: bool = False
    needed: dict[Any, Bytes] = field(default_factory=dict)

    @property
    def summed(self) -> tuple[Statistic, ...]:
        """The statistics that are added up."""
        return tuple(s for s in self.statistics if not isinstance(s, Examples))

    def add(self, batch: tuple) -> None:
        """Measure a batch.

        Raises:
            ValueError: inputs that the networks do not take, or a step that would hold too many bytes.
        """
        apply, graph, models = self.networks
        self.some = self.some or len(batch) == 2 or bool(np.any(batch[2]))
        if (shapes := signature(batch)) not in self.needed:
            for network in zip(functions_of(apply, models), graphs_of(graph, models), models, strict=True):
                check_inputs(network, batch[0])
            self.needed[shapes] = _bytes(self.networks, self.summed, batch)
        self.kept += [s.measure(apply, graph, models, batch) for s in self.statistics if isinstance(s, Examples)]
        data = bytes_of([run.tasks[0] for run in self.kept])
        _check_memory(self.memory_limit, self.statistics, self.needed[shapes], data)
        new = measure(apply, graph, self.summed, models, batch)
        self.states = new if self.states is None else _combine(self.summed, self.states, _beside(new, self.states))

    def finalised(self) -> Collected:
        """What each statistic is finalised to. Raises ValueError without data."""
        if self.states is None:
            raise ValueError("collect needs data: got no batches")
        if not self.some:
            raise ValueError("collect needs data: all that the batches hold is padding, by their masks or targets below zero")
        found = Collected(zip(map(type, self.summed), _finalised(self.summed, self.states), strict=True))
        if self.kept:
            found[Examples] = replace(functools.reduce(Examples().combine, self.kept), memory_limit=self.memory_limit)
        return found


def _bytes(networks: Networks, summed: tuple[Statistic, ...], batch: tuple) -> Bytes:
    apply, graph, models = networks
    if not summed:
        return Bytes(bytes_of((models, batch)), 0)
    traced = measure.trace(apply, graph, summed, models, batch)
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


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def measure(apply: Any, graph: Any, statistics: tuple[Statistic, ...], models: tuple, batch: tuple) -> tuple:
    """The state of each statistic after one batch."""
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
