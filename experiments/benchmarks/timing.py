"""Two functions timed in turns."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

Thunk = Callable[[], Any]
Row = tuple[str, str, float, float]
"""What was timed, against what, and the median seconds of both."""


def interleaved(ours: Thunk, peer: Thunk, *, repeats: int, warm: bool = True) -> tuple[float, float]:
    """Median seconds of two functions, called in turns, after one call each to compile unless they are not `warm`ed up."""
    times: tuple[list[float], list[float]] = ([], [])
    for thunk in (ours, peer) if warm else ():
        jax.block_until_ready(thunk())
    for _ in range(repeats):
        for thunk, taken in zip((ours, peer), times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(thunk())
            taken.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])
