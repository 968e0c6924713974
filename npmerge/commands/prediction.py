"""What a merge will take: memory from how the engine holds tensors, time from a probe of this machine."""

import math
import time
from typing import TYPE_CHECKING, NamedTuple

import ml_dtypes
import numpy as np

from npmerge.recipe.blocks import Learn
from npmerge.recipe.plan import Plan, Step
from npmerge.stream.engine import LANES, Options, block_bytes, room_of, threads_of, whole_bytes
from npmerge.stream.tensors import bytes_of_entry

if TYPE_CHECKING:
    from npmerge.learning.blocks import Blocks
    from npmerge.learning.predictions import LearnPrediction

COSTS = {
    "": 7.1,  # a copy
    "linear": 5.5,
    "passthrough": 7.1,
    "slerp": 8.9,
    "nuslerp": 7.8,
    "multislerp": 5.7,
    "karcher": 6.2,
    "nearswap": 5.1,
    "arcee_fusion": 76.0,
    "model_stock": 6.0,
    "task_arithmetic": 4.1,
    "ties": 6.7,
    "dare_linear": 6.6,
    "dare_ties": 6.5,
    "breadcrumbs": 10.0,
    "breadcrumbs_ties": 10.0,
    "della": 29.0,
    "della_linear": 26.0,
    "sce": 5.9,
    "mlerp": 6.7,
    "pcb": 64.0,
    "consensus_ta": 4.4,
}
"""CPU time per byte that is read, as a multiple of `probed`: three models in bfloat16, hashes of inputs included.

Measured by `python -m experiments.benchmarks.cost_of_methods` on two cores under load, when results were hashed too.
"""

START = 2.5
"""CPU seconds of imports and compilation: tiny models took 2.3 to 4.2 by the method."""

LIBRARIES = 400_000_000
"""Bytes besides tensors, at most: 3 models by `ties` took 497 MB, 134 of which are of tensors; by `linear` 362 with 55; others
8 MB more than 370 and their tensors."""

WHOLE = ("arcee_fusion", "della", "della_linear", "pcb", "iso_c", "iso_cts", "tsv_m", "wudi")
"""Methods that hold a tensor of all models at once. `is_whole` has those that do by their parameters."""

ONCE = ("linear", "passthrough", "task_arithmetic")
"""Methods that read a tensor once, so that no block of it is kept."""


class Prediction(NamedTuple):
    """What a plan will take.

    Attributes:
        memory: bytes of the process, at most.
        seconds: from start to end where the disk keeps up; None for methods whose cost has not been measured.
        unmeasured: those methods.
        threads: that it is run on.
    """

    memory: int
    seconds: float | None
    unmeasured: tuple[str, ...]
    threads: int


def predicted(plan: Plan, options: Options, probe: float) -> Prediction:
    """What a plan will take.

    Args:
        plan: of one document.
        options: threads and memory.
        probe: seconds per gigabyte, of `probed`.
    """
    unmeasured = tuple(sorted({step.method for step in plan.steps} - COSTS.keys()))
    cost = sum(plan.bytes_read(step) / 1e9 * COSTS.get(step.method, math.nan) for step in plan.steps)
    threads = threads_of(plan, options)
    seconds = None if unmeasured else START + cost * probe / threads
    return Prediction(LIBRARIES + _tensors(plan, options, threads), seconds, unmeasured, threads)


def predicted_learning(blocks: "Blocks", learn: Learn, *, aligned: bool) -> tuple["LearnPrediction", int]:
    """What learning takes, for which a step is compiled and timed, and the bytes that all of the blocks hold.

    Args:
        blocks: of a document.
        learn: its block.
        aligned: whether networks are aligned before.
    """
    from npmerge.learning.predictions import PROGRAMS, predicted_fit  # imports flax and Optax

    found = predicted_fit(blocks, learn)
    return found, found.held + (PROGRAMS if aligned else 0)  # activations are a program of the network, too


def probed() -> float:
    """Seconds in which a core of this machine multiplies a gigabyte of bfloat16 by a number: the least of some tries."""
    x = np.linspace(-1, 1, 2**20).astype(ml_dtypes.bfloat16)

    def once() -> float:
        begun = time.perf_counter()
        (x.astype(np.float32) * np.float32(0.5)).astype(x.dtype)
        return time.perf_counter() - begun

    return min(once() for _ in range(20)) / x.nbytes * 1e9


def is_whole(step: Step) -> bool:
    """Whether a step holds its tensor of all models at once."""
    by_row = step.parameters.get("filter_wise", False) or not step.parameters.get("nuslerp_flatten", True)
    return step.method in WHOLE or bool(by_row)


def _tensors(plan: Plan, options: Options, threads: int) -> int:
    """Blocks under way, and what is kept of tensors between two passes or held whole."""
    room = room_of(plan, options, threads)
    merged = [step for step in plan.steps if step.action == "merge"]
    kept = max((sum(_kept(plan, step, room) for step in merged[k : k + LANES]) for k in range(len(merged))), default=0)
    whole = max((whole_bytes(plan, step) for step in merged if is_whole(step)), default=0)
    return threads * block_bytes(plan) + max(kept, whole)


def _kept(plan: Plan, step: Step, room: int) -> int:
    """Bytes of a tensor that is read more than once, if they fit into the room for it."""
    stored = step.entry.size * bytes_of_entry(plan.models, step)
    return stored if stored <= room and step.method not in ONCE and not is_whole(step) else 0
