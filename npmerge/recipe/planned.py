"""Models that are planned and not yet made: what a plan of a later document needs of an earlier one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npmerge.checkpoint.stored import Entry, StoredModel
from npmerge.recipe.plan import Plan

BYTES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""That an entry takes, by safetensors' names of the types; of those that are not here one."""


class PlannedModel(StoredModel):
    """The headers that the result of a plan will have."""

    def __init__(self, name: str, plan: Plan) -> None:
        """Of the document of that name."""
        self.path = Path(name)
        self.entries = {step.name: _entry(step.name, step.dtype, step.shape) for step in plan.steps}
        self.config: Mapping[str, Any] = plan.models[plan.reference].config

    def read(self, name: str, start: int = 0, count: int | None = None) -> np.ndarray:
        """Raises ValueError: there is nothing to be read yet."""
        raise ValueError(f"{self.path} is planned and not made yet: {name!r} cannot be read")


def _entry(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    return Entry(name, dtype, shape, int(np.prod(shape, dtype=np.int64)) * BYTES.get(dtype, 1))
