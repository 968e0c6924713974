"""Functions timed in turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

Thunk = Callable[[], Any]
Row = tuple[str, str, float, float]
"""What was timed, against what, and the median seconds of both."""


def interleaved(ours: Thunk, peer: Thunk, *, repeats: int, warm: bool = True) -> tuple[float, float]:
    """Median seconds of two functions, called in turns, after one call each to compile unless they are not `warm`ed up."""
    found = in_turns({"ours": ours, "peer": peer}, repeats=repeats, warm=warm)
    return found["ours"], found["peer"]


def in_turns(thunks: Mapping[str, Thunk], *, repeats: int, warm: bool = True) -> dict[str, float]:
    """Median seconds of several functions, likewise."""
    times: dict[str, list[float]] = {name: [] for name in thunks}
    for thunk in thunks.values() if warm else ():
        jax.block_until_ready(thunk())
    for _ in range(repeats):
        for name, thunk in thunks.items():
            began = time.perf_counter()
            jax.block_until_ready(thunk())
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in times.items()}
