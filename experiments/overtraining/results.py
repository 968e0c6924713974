"""The rows of a folder, asked for by setup, training, moment and method."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.differences import Difference, paired
from experiments.overtraining.settings import PLATEAU
from experiments.run import points, read_rows

Row = Mapping[str, Any]
CHOSEN = "chosen"
"""In the place of a moment: the one of lowest selection loss, for each seed and method."""


@dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes:
        settings: what it was made with, as `settings.json` has it.
        rows: of merges.
        difficulty: of examples by difficulty.
    """

    settings: Row
    rows: Sequence[Row]
    difficulty: Sequence[Row]

    @property
    def setups(self) -> list[str]:
        """Those that there are rows of."""
        return list(dict.fromkeys(row["setup"] for row in self.rows))

    @property
    def moments(self) -> list[int]:
        """Numbers of steps, ascending."""
        return sorted(self.settings["moments"])

    @property
    def seeds(self) -> list[int]:
        """All of them."""
        return sorted({row["seed"] for row in self.rows})

    def of(self, setup: str, training: str, method: str) -> list[Row]:
        """The rows of a method, over all seeds and moments."""
        wanted = {"setup": setup, "training": training, "method": method}
        return [row for row in self.rows if all(row[name] == value for name, value in wanted.items())]

    def values(self, setup: str, training: str, method: str, moment: Any, column: str = "accuracy") -> dict[int, float]:
        """A column by seed; at the last moment for -1, at the one that selection data choose for `CHOSEN`."""
        rows = self.of(setup, training, method)
        if moment == CHOSEN:
            found: dict[int, float] = {}
            for seed in {row["seed"] for row in rows}:
                among = [row for row in rows if row["seed"] == seed and row["steps"] != PLATEAU]
                found[seed] = min(among, key=lambda row: row["selection"])[column]
            return found
        at = self.moments[-1] if moment == -1 else moment
        return {row["seed"]: row[column] for row in rows if row["steps"] == at}

    def mean(self, setup: str, training: str, method: str, moment: Any, column: str = "accuracy") -> float:
        """Over seeds; NaN where there is no row."""
        found = list(self.values(setup, training, method, moment, column).values())
        return float(np.mean(found)) if found else float("nan")

    def cell(self, setup: str, training: str, method: str, moment: Any) -> str:
        """Test accuracy for a table, in percent."""
        found = list(self.values(setup, training, method, moment).values())
        return points(found) if found else ""

    def between(self, setup: str, training: str, methods: Iterable[str], moment: Any, than: Any) -> Difference | None:
        """How much more accurate merges are at one moment than at another, the mean over methods."""
        return paired((self.values(setup, training, x, moment), self.values(setup, training, x, than)) for x in methods)

    def beside(self, setup: str, training: str, method: str, than: str, moments: Sequence[Any]) -> Difference | None:
        """How much more accurate one method is than another, over moments."""
        return paired((self.values(setup, training, method, m), self.values(setup, training, than, m)) for m in moments)

    def group(self, setup: str, training: str, moment: int, group: int, column: str) -> dict[int, float]:
        """A share of the examples of one difficulty, by seed."""
        key = {"setup": setup, "training": training, "steps": moment, "group": group}
        return {row["seed"]: row[column] for row in self.difficulty if all(row[name] == x for name, x in key.items())}


def read(folder: Path) -> Results:
    """What was measured, of a folder."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return Results(settings, *(read_rows(folder / f"{name}.csv") for name in ("rows", "difficulty")))
