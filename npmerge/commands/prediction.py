"""What a merge will take: memory from how the engine holds tensors, time from a probe of this machine."""

import math
import time
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from npmerge.recipe.plan import Plan, Step
from npmerge.stream.engine import BUDGET, Options, block_bytes, whole_bytes
from npmerge.stream.outcomes import read_bytes

COSTS: dict[str, float] = {}


def probed() -> float:
    """CPU seconds in which this machine multiplies a gigabyte of bfloat16 by a number: the least of some tries."""
    x = np.linspace(-1, 1, 2**20).astype(ml_dtypes.bfloat16)

    def once() -> float:
        begun = time.perf_counter()
        (x.astype(np.float32) * np.float32(0.5)).astype(x.dtype)
        return time.perf_counter() - begun

    return min(once() for _ in range(20)) / x.nbytes * 1e9
