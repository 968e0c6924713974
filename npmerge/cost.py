"""What a merge costs, and the statistics that it needs: operations, bytes, seconds and memory.

The cost axis of Tam et al. 2024, Realistic Evaluation of Model Merging: the two are told apart, as statistics are collected
once and merges are made often.
"""

import dataclasses
import functools
import math
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array

from alignment.graph import PyTree, signature
from npmerge.base import Merge, Stats
from npmerge.batches import measured
from npmerge.masks import with_mask
from npmerge.memory import bytes_of
from npmerge.operations import operations
from npmerge.reports.tables import markdown_table
from npmerge.stack import Stack, check_stack
from npmerge.statistics.collect import Statistic, collect, statistics_of
from npmerge.statistics.one_pass import measure, networks_of
from npmerge.telling import listening, noting


@dataclass(frozen=True)
class Cost:
    """What was spent, apart from compilation.

    Attributes:
        flops: operations as `npmerge.operations` counts them: on the jaxpr, and what host code tells of itself.
        bytes: what is kept: the statistics, or theta of the merge.
        seconds: wall time of a call that compiles nothing.
        peak_bytes: the most that was held at once: what goes in, what comes out and what is needed meanwhile, as XLA plans it
            for compiled programs, and for host code as `tracemalloc` sees it. Not the memory of the process.
        xla_flops: operations that XLA itself counts of the same compiled programs; it enters loops once and does not see into
            decompositions. None where nothing was compiled as a whole.
        uncounted: whether there was host code that tells nothing of itself, so that `flops` is too low.
        notes: what the merge did where its formula does not tell, such as how it solved a singular system: the method, the
            tensor and what was done.
    """

    flops: float
    bytes: int
    seconds: float
    peak_bytes: int
    xla_flops: float | None = None
    uncounted: bool = False
    notes: tuple[str, ...] = ()

    def then(self, later: "Cost") -> "Cost":
        """Both, one after the other; what is kept is that of the first."""
        known = [c.xla_flops for c in (self, later) if c.xla_flops is not None]
        return dataclasses.replace(
            self,
            flops=self.flops + later.flops,
            seconds=self.seconds + later.seconds,
            peak_bytes=max(self.peak_bytes, later.peak_bytes),
            xla_flops=sum(known) if known else None,
            uncounted=self.uncounted or later.uncounted,
            notes=self.notes + later.notes,
        )


def merged(merge: Merge, stack: Stack, stats: Stats | None = None, key: Array | None = None) -> tuple[PyTree, Cost]:
    """`merge(stack, stats=stats, key=key)` and what it costs, the statistics not included.

    What JAX can trace is compiled as one program and run once. An `init` that computes on the host runs twice, the first time
    to compile its parts and to see its memory.

    Raises:
        ValueError: as the merge does.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.zeros(1000)}, {"w": jnp.ones(1000)}])
        >>> variables, cost = nm.cost.merged(nm.Average(), stack)
        >>> cost.flops, cost.bytes  # two products and a sum for each entry; one coefficient for each model is kept
        (3000, 8)
    """
    check_stack(stack)
    kinds, values = tuple(stats or ()), tuple((stats or {}).values())

    def init(stack: Stack, values: tuple, key: Array | None) -> PyTree:
        return merge.init(stack, stats=None if stats is None else dict(zip(kinds, values, strict=True)), key=key)

    theta, start = computed(init, stack, values, key)
    variables, end = computed(merge.apply, theta, stack)
    return variables, start.then(end)


def computed(function: Callable[..., PyTree], *args: Any) -> tuple[PyTree, Cost]:
    """`function(*args)` and what it costs: compiled as one program and run once, or on the host where it wants values.

    Example:
        >>> square, cost = nm.cost.computed(lambda x: x @ x, jnp.eye(10))
        >>> cost.flops, cost.bytes, cost.peak_bytes >= 800  # 100 sums of 10 products; one matrix goes in and one comes out
        (1900, 400, True)
    """
    try:
        traced = jax.jit(function).trace(*args)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):  # it wants values: host code
        return _spent_on_host(function, *args)
    plan = traced.lower().compile()
    result, seconds = _timed(plan, *args)
    return result, Cost(operations(traced.jaxpr), bytes_of(result), seconds, _planned(plan), _xla_flops(plan))


def collected(
    apply: Any,
    graph: Any,
    models: Sequence[PyTree],
    batches: Iterable[tuple],
    statistics: Iterable[Statistic | type[Statistic] | Merge],
    *,
    memory_limit: float = 16e9,
) -> tuple[Mapping[type, Any], Cost]:
    """`collect(apply, graph, models, batches, statistics)` and what it costs; arguments and errors are those of `collect`.

    The batches are held in a list: one of each shape is measured beforehand, to compile. Operations and memory are those of
    measuring, batch by batch; of several statistics each counts its own forward pass, of which XLA makes one.

    Example:
        >>> apply, v, x = lambda v, x: x @ v["w"], {"w": jnp.zeros((2, 3))}, jnp.ones((4, 2))
        >>> graph = nm.trace(apply, v, x)
        >>> stats, cost = nm.cost.collected(apply, graph, [v], [(x, None)], [nm.InputGram()])
        >>> stats[nm.InputGram]["w"].gram.shape, cost.bytes  # four products and the number of samples
        ((1, 2, 2), 20)
    """
    wanted = statistics_of(statistics)
    gather = functools.partial(collect, apply, graph, models, statistics=wanted, memory_limit=memory_limit)
    batches = list(map(with_mask, measured(batches, masks=True)))
    shapes = Counter(map(signature, batches))
    first = {signature(b): b for b in batches}
    gather(batches=[b for b in first.values() for _ in range(2)])
    began = time.perf_counter()
    stats = gather(batches=batches)
    jax.block_until_ready(stats)
    seconds = time.perf_counter() - began

    networks = networks_of(apply, graph, models, wanted)
    traced = {shape: measure.trace(networks.apply, networks.graph, wanted, networks.models, b) for shape, b in first.items()}
    plans = {shape: t.lower().compile() for shape, t in traced.items()}
    kept = bytes_of(stats)
    return stats, Cost(
        flops=sum(shapes[shape] * operations(t.jaxpr) for shape, t in traced.items()),
        bytes=kept,
        seconds=seconds,
        peak_bytes=max(map(_planned, plans.values())) + kept,
        xla_flops=sum(shapes[shape] * _xla_flops(plan) for shape, plan in plans.items()),
    )


def cost_table(costs: Mapping[str, Cost]) -> list[str]:
    """Lines of a Markdown table, a row for each name, and of a list of their notes.

    It says "at least" where host code tells nothing of itself.
    """

    def row(name: str, c: Cost) -> tuple[str, ...]:
        least = "at least " if c.uncounted else ""
        return name, least + scaled(c.flops), scaled(c.bytes, "B"), scaled(c.peak_bytes, "B"), f"{c.seconds:.2g}"

    header = ("", "operations", "kept", "peak memory", "seconds")
    notes = [f"- {name}: {text}" for name, c in costs.items() for text in c.notes]
    return markdown_table(header, [row(*named) for named in costs.items()]) + (["", *notes] if notes else [])


def _spent_on_host(function: Callable[..., PyTree], *args: Any) -> tuple[PyTree, Cost]:
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with listening() as told, noting() as notes:
        jax.block_until_ready(function(*args))
    peak = tracemalloc.get_traced_memory()[1] - before
    if not was_tracing:
        tracemalloc.stop()
    result, seconds = _timed(function, *args)
    known = [count for count in told if not math.isnan(count)]
    uncounted = not told or len(known) < len(told)
    return result, Cost(sum(known), bytes_of(result), seconds, bytes_of((args, result)) + peak, None, uncounted, tuple(notes))


def _timed(function: Callable[..., PyTree], *args: Any) -> tuple[PyTree, float]:
    began = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - began


def _planned(plan: Any) -> int:
    """The most memory a compiled program holds at once."""
    found = plan.memory_analysis()
    sizes = found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes
    return sum(sizes) - found.alias_size_in_bytes


def _xla_flops(plan: Any) -> float:
    found = plan.cost_analysis() or {}
    return max(found.get("flops", 0.0), 0.0) + max(found.get("transcendentals", 0.0), 0.0)


def scaled(number: float, unit: str = "") -> str:
    """In the power of a thousand that leaves one to three digits in front of the point."""
    power = 0
    while number >= 999.5 and power < 4:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {['', 'k', 'M', 'G', 'T'][power]}{unit}".strip()
