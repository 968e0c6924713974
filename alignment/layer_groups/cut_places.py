"""Where a network can be cut into layer groups: behind nodes, between layers by their names, where little lives across."""

import bisect
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignment.checks import first_line, unknown
from alignment.graph import PyTree, Signature, as_shapes, signature
from alignment.layer_groups.groups import Apply, Cuts, Flow, Location, flow_of
from alignment.program import CUSTOM, Step
from alignment.tracing.trace import trace


class Candidate(NamedTuple):
    """A place to cut at: between two steps that read leaves for the first time, the one across which the least lives.

    Attributes:
        behind: the equation behind which the cut is.
        living: bytes of the values that later steps read, inputs of the network left out.
        read: the leaves that are first read in front of it, and behind the candidate before.
    """

    behind: Location
    living: int
    read: tuple[str, ...]


def candidates(apply: Apply, variables: PyTree, inputs: PyTree) -> tuple[Candidate, ...]:
    """All places to cut a network at, in its order. Nothing is computed.

    Across each of them every value is divided by examples, along its first axis, or is one number: so batches can be divided
    and filled up there as in front of the network. A loop is one equation, and never cut.

    Args:
        apply: the network, `apply(variables, inputs) -> outputs`.
        variables: arrays or `jax.ShapeDtypeStruct`.
        inputs: a batch, likewise. Its examples are along the first axis of its arrays.

    Raises:
        ValueError: a function that `alignment.trace` does not take either.
    """
    flow, sizes = _measured(apply, signature(variables), signature(inputs))
    found: list[Candidate] = []
    read: list[str] = []
    window: list[tuple[int, int]] = []
    seen: set[str] = set()
    steps = _steps(flow)
    for k, (living, whole) in enumerate(_living(flow, sizes)):
        new = dict.fromkeys(path for v in steps[k].ins for path in flow.leaves.get(v, ()) if path not in seen)
        if new and window:
            least, place = min(window)  # the last of those where least lives
            found.append(Candidate(steps[-place].location, least, tuple(read)))
            read = []
        if new:
            seen.update(new)
            read += new
            window = []
        if read and whole:
            window.append((living, -k))
    return tuple(found)


def cut_behind(apply: Apply, variables: PyTree, inputs: PyTree, nodes: Sequence[str]) -> Cuts:
    """Cut behind the features of nodes, where `capture` sees them. Arguments otherwise as for `candidates`.

    Raises:
        ValueError: a name that the graph does not have (the nearest is named), a node that is never seen on the way or only
            inside a loop, or behind which there are values that are not divided by examples.
    """
    own, x = signature(variables), signature(inputs)
    graph = trace(apply, as_shapes(own), as_shapes(x))
    flow, sizes = _measured(apply, own, x)
    steps = _steps(flow)
    living = list(_living(flow, sizes))
    found = []
    for name in nodes:
        if name not in graph.taps:
            raise ValueError(unknown("node to cut behind", name, graph.taps))
        k = _place(name, graph.taps[name].location, steps)
        if not living[k][1]:
            raise ValueError(
                f"behind node {name!r} there are values that are not divided by examples along their first axis: cut elsewhere"
            )
        found.append(steps[k].location)
    return cuts_at(apply, variables, inputs, found)


def cut_between(apply: Apply, variables: PyTree, inputs: PyTree, pattern: str) -> Cuts:
    r"""Cut wherever another layer begins: leaves whose path a pattern finds the same in are of one layer.

    Args:
        apply: as for `candidates`, as are the variables and inputs.
        variables: see there.
        inputs: see there.
        pattern: a regular expression searched in each path, such as `blocks/(\d+)/`. Leaves with the same first group (or
            whole match) are of one layer; what it does not match belongs to none, and makes groups of its own where it is
            read between layers.

    Raises:
        ValueError: a pattern that is none or matches no leaf.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the layers {pattern!r} are not a regular expression: {error}") from None

    def layer(path: str) -> str | None:
        match = compiled.search(path)
        return None if match is None else match.group(compiled.groups and 1)

    flow, _ = _measured(apply, signature(variables), signature(inputs))
    if not any(layer(path) for path in flow.names):
        raise ValueError(f"the layers {pattern!r} match none of {len(flow.names)} paths, such as {list(flow.names[:3])}")
    places = candidates(apply, variables, inputs)
    firsts = [place.read[0] for place in places[1:]] + _rest(flow, places)[:1]  # of what follows each of them
    found = [place.behind for place, first in zip(places, firsts, strict=False) if layer(place.read[-1]) != layer(first)]
    return cuts_at(apply, variables, inputs, found)


def cuts_at(apply: Apply, variables: PyTree, inputs: PyTree, behind: Sequence[Location]) -> Cuts:
    """Cut behind these equations, in any order. Arguments otherwise as for `candidates`."""
    own, x = signature(variables), signature(inputs)
    every = [step.location for step in _steps(flow_of(apply, own, x, None)[0])]
    outermost = {_outermost(location, every) for location in behind}
    ordered = tuple(sorted(outermost, key=lambda location: (*location, math.inf)))  # the end of a call is behind its inside
    flow, _ = flow_of(apply, own, x, ordered)
    return Cuts(apply, own, ordered, len(flow.program.avals))


def _outermost(location: Location, every: Sequence[Location]) -> Location:
    """The largest call that ends where an equation does, so that it need not be inlined; that equation if there is none."""
    after = every[bisect.bisect_right(every, location) :]
    ends = [location[:depth] for depth in range(1, len(location)) if not after or after[0][:depth] != location[:depth]]
    return ends[0] if ends else location


def _rest(flow: Flow, places: Sequence[Candidate]) -> list[str]:
    """The leaves that are first read behind all candidates."""
    seen = {path for place in places for path in place.read}
    read = (path for step in _steps(flow) for v in step.ins for path in flow.leaves.get(v, ()))
    return [path for path in dict.fromkeys(read) if path not in seen]


def _place(name: str, location: Location, steps: Sequence[Step]) -> int:
    """The place of the step that a tap is in."""
    k = bisect.bisect_right([step.location for step in steps], location) - 1
    inside = location[: len(steps[k].location)] == steps[k].location
    if inside and steps[k].location != location and steps[k].name not in CUSTOM:
        raise ValueError(
            f"node {name!r} is inside a {steps[k].name}, which is one equation and is not cut: cut behind a node in front "
            "of it or behind it"
        )
    return k


def _steps(flow: Flow) -> list[Step]:
    return [flow.program.steps[i] for i in flow.order]


def _living(flow: Flow, sizes: dict[int, int | None]) -> Iterator[tuple[int, bool]]:
    """Behind each step of the order: the bytes that live on, and whether all of them are divided by examples."""
    ends: dict[int, list[int]] = {}
    alive: set[int] = set()
    total = odd = 0
    for v, k in flow.last.items():
        ends.setdefault(k, []).append(v)
    for k, step in enumerate(_steps(flow)):
        for v in step.outs:
            if flow.last.get(v, -1) > k:
                alive.add(v)
                total, odd = total + (sizes[v] or 0), odd + (sizes[v] is None)
        for v in ends.get(k, ()):
            if v in alive:
                alive.remove(v)
                total, odd = total - (sizes[v] or 0), odd - (sizes[v] is None)
        yield total, not odd


def _measured(apply: Apply, variables: Signature, inputs: Signature) -> tuple[Flow, dict[int, int | None]]:
    """The program with all calls inlined, and the bytes of each value; None for one that is not divided by examples.

    Which values are is seen by tracing a batch of one example more.
    """
    count = next((shape[0] for shape, _ in inputs[1] if shape), 1)
    size = max(count, 2)  # some functions are written otherwise for a batch of one
    first, _ = flow_of(apply, variables, _resized(inputs, count, size), None)
    try:
        more, _ = flow_of(apply, variables, _resized(inputs, count, size + 1), None)
    except Exception as error:  # whatever the network's library raises
        why = f"the network takes {size} examples and not {size + 1}, so it cannot be cut"
        raise ValueError(f"{why}: {first_line(error)}") from error
    a, b = first.program.avals, more.program.avals
    if len(a) != len(b):
        raise ValueError(f"the network has other equations for {size + 1} examples than for {size}, so it cannot be cut")
    return first, {v: _bytes(a[v], b[v], size) for v in first.data}


def _resized(inputs: Signature, count: int, size: int) -> Signature:
    structure, leaves = inputs
    return structure, tuple(((size, *shape[1:]) if shape and shape[0] == count else shape, dtype) for shape, dtype in leaves)


def _bytes(value: Any, more: Any, count: int) -> int | None:
    """The bytes of a value; None unless it is a number, or has an example at each place of its first axis."""
    shape, other, dtype = (getattr(x, name, None) for x, name in ((value, "shape"), (more, "shape"), (value, "dtype")))
    if shape is None or other is None or dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        return None
    if shape and (shape[0] != count or other != (count + 1, *shape[1:])):
        return None
    return int(np.prod(shape)) * dtype.itemsize
