"""Models that are planned and not yet made: what a plan of a later document needs of an earlier one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npmerge.checkpoint.stored import StoredModel
from npmerge.recipe.plan import Plan


class PlannedModel(StoredModel):
    """The headers that the result of a plan will have."""

    def __init__(self, name: str, plan: Plan) -> None:
        """Of the document of that name."""
        self.path = Path(name)
        self.entries = {step.name: step.entry for step in plan.steps}
        self.config: Mapping[str, Any] = plan.reference.config

    @property
    def folder(self) -> Path:
        """Nothing is there yet, and nothing of what lies around the command is taken for it."""
        return self.path

    def read(self, name: str, start: int = 0, count: int | None = None) -> np.ndarray:
        """Raises ValueError: there is nothing to be read yet."""
        raise ValueError(f"{self.path} is planned and not made yet: {name!r} cannot be read")
