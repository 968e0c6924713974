"""The rows of a folder, asked for by task, method, size and source."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.differences import Difference, paired
from experiments.pleas.settings import ENSEMBLE, LABELLED, LEVELS, NOISE, OWN, SMALL, ZIPPED
from experiments.run import points, read_rows

Row = Mapping[str, Any]


class Side(NamedTuple):
    """A method with images of a source; `source` None is the data set that stands in for the task's own."""

    method: str
    source: str | None = OWN


@dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes:
        settings: what it was made with, as `settings.json` has it.
        tasks: their names, those that there are rows of.
        rows: of merges.
    """

    settings: Row
    tasks: Sequence[str]
    rows: Sequence[Row]

    def task(self, name: str) -> Row:
        """By its name."""
        return next(task for task in self.settings["tasks"] if task["name"] == name)

    def title(self, name: str) -> str:
        """A task, in words."""
        task = self.task(name)
        parts = {"domains": " and ".join(task["domains"]), "classes": "half of the classes each"}
        return f"{task['data']}, {parts.get(task['division'], 'half of the images each')}"

    @property
    def sizes(self) -> list[int]:
        """Shared stages, from one network to both."""
        return list(self.settings["shared"])

    @property
    def between(self) -> list[int]:
        """Those of sizes between one network and both."""
        return self.sizes[1:-1]

    def seeds(self, task: str | None = None) -> list[int]:
        """All of them, or those of a task."""
        return sorted({row["seed"] for row in self.rows if task in (None, row["task"])})

    def values(self, task: str, side: Side, shared: int, column: str = "accuracy") -> dict[int, Any]:
        """A column by seed. What is not merged has no size, and is compared with merges of all sizes."""
        method, source = side.method, self.other(task) if side.source is None else side.source
        at = "" if method in LEVELS else self.sizes[0] if method in (*SMALL, *LABELLED) else shared
        place = {"task": task, "method": method, "shared": at, "source": source}
        return {row["seed"]: row[column] for row in self.rows if all(row[name] == x for name, x in place.items())}

    def other(self, task: str) -> str:
        """The data set that stands in for the task's own images; empty where none does."""
        return next((name for name in self.task(task)["others"] if name != NOISE), "")

    def cell(self, task: str, side: Side, shared: int, column: str = "accuracy") -> str:
        """A column for a table, in percent."""
        found = list(self.values(task, side, shared, column).values())
        return points(found) if found else ""

    def mean(self, task: str, side: Side, shared: int, column: str = "accuracy") -> float:
        """A column, the mean over seeds; NaN where there is no row."""
        found = list(self.values(task, side, shared, column).values())
        return float(np.mean(found)) if found else float("nan")

    def flops(self, task: str, shared: int) -> float:
        """The operations of two networks that share so many stages, in multiples of one: what a merge of the size may cost."""
        if shared == self.sizes[0]:
            return 1.0
        return self.mean(task, Side(ENSEMBLE if shared == 0 else ZIPPED), shared, "flops")

    def difference(self, side: Side, than: Side, sizes: Sequence[int], *, tasks: Sequence[str]) -> Difference | None:
        """How much more accurate one side is than another, over tasks and sizes that have both."""
        places = [(task, shared) for task in tasks for shared in sizes]
        return paired((self.values(task, side, shared), self.values(task, than, shared)) for task, shared in places)


def read(folder: Path) -> Results:
    """What was measured, of a folder."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    rows = read_rows(folder / "rows.csv")
    there = {row["task"] for row in rows}
    return Results(settings, [task["name"] for task in settings["tasks"] if task["name"] in there], rows)
