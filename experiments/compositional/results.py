"""The rows of a folder, asked for by task and method, and what follows from them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from experiments.compositional.settings import CONTROLS, LEARNED, METHODS, PAPER
from experiments.differences import Difference, paired
from experiments.run import points, read_rows

SAME = 0.001
"""Accuracies that are less apart are one."""

Row = Mapping[str, Any]
SCORES = ("held_in", "generalisation")
OVER_EXPERTS = "held_in_over_experts"
"""Of fewer networks: held-in accuracy less that of each cell's expert. Cells differ in how hard they are, and each number of
networks has other ones."""

AREAS = tuple(f"{name}_auroc" for name in SCORES)


@dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes:
        settings: what it was made with, as `settings.json` has it.
        rows: of methods.
        sensitivity: of each hyper-parameter.
        curves: of fewer networks.
    """

    settings: Row
    rows: Sequence[Row]
    sensitivity: Sequence[Row]
    curves: Sequence[Row]

    @property
    def tasks(self) -> list[Row]:
        """Those that have rows, in order."""
        there = {row["task"] for row in self.rows}
        return [task for task in self.settings["tasks"] if task["name"] in there]

    @property
    def seeds(self) -> list[int]:
        """All of them."""
        return sorted({row["seed"] for row in self.rows})

    def of(self, task: str, method: str) -> list[Row]:
        """The rows of a method that did not refuse, by seed."""
        found = [row for row in self.rows if (row["task"], row["method"]) == (task, method) and not row["error"]]
        return sorted(found, key=lambda row: (row["seed"], str(row["expert"])))

    def methods(self, task: str) -> list[str]:
        """Merges, learned merges and controls that have rows."""
        return [name for name in METHODS if self.of(task, name)]

    def merges(self, task: str) -> list[str]:
        """Those without learning."""
        return [name for name in self.methods(task) if name not in LEARNED and name not in CONTROLS.values()]

    def values(self, task: str, method: str, column: str) -> dict[int, float]:
        """A column by seed; of several rows of a seed their mean, of rows without it none."""
        found: dict[int, list[float]] = {}
        for row in self.of(task, method):
            if row[column] != "":
                found.setdefault(row["seed"], []).append(row[column])
        return {seed: float(np.mean(x)) for seed, x in found.items()}

    def mean(self, task: str, method: str, column: str) -> float:
        """Over seeds; NaN where there is no row."""
        values = list(self.values(task, method, column).values())
        return float(np.mean(values)) if values else float("nan")

    def cell(self, task: str, method: str, column: str) -> str:
        """For a table, in percent."""
        values = list(self.values(task, method, column).values())
        return points(values) if values else ""

    def difference(self, method: str, than: str, column: str, tasks: Sequence[str] | None = None) -> Difference | None:
        """How much better one method is than another, over tasks."""
        names = [task["name"] for task in self.tasks] if tasks is None else tasks
        return paired((self.values(task, method, column), self.values(task, than, column)) for task in names)

    def published(self, task: str) -> list[str]:
        """The merges of the paper."""
        return [name for name in self.merges(task) if name in PAPER]

    def correlation(self, task: str, methods: Sequence[str]) -> dict[int, float]:
        """Spearman's rank correlation of held-in and generalisation accuracy over some methods, by seed.

        Methods that come to the same, less than SAME apart in both, are one point. Seeds in which all differ by less than two
        standard errors of a test accuracy in one of both are left out: their ranks say nothing.
        """
        found = {}
        for seed in self.seeds:
            there = [name for name in methods if seed in self.values(task, name, SCORES[0])]
            if len(there) < 3:
                continue
            each = np.array([[self.values(task, name, column)[seed] for column in SCORES] for name in there])
            errors = [np.mean([self.values(task, name, f"{x}_standard_error")[seed] for name in there]) for x in SCORES]
            pairs = different(each)
            if len(pairs) > 2 and (np.ptp(pairs, axis=0) >= 2 * np.array(errors)).all() and np.ptp(pairs, axis=0).all():
                found[seed] = float(stats.spearmanr(*pairs.T).statistic)
        return found

    def curve(self, task: str, method: str, column: str) -> dict[int, list[float]]:
        """By number of networks the values of all seeds and orders; all networks are one value for each seed."""
        found: dict[int, list[float]] = {}
        for row in self.curves:
            if (row["task"], row["method"]) == (task, method):
                found.setdefault(row["models"], []).append(row[column])
        return dict(sorted(found.items()))

    def more_models(self, task: str, column: str) -> Difference | None:
        """All networks less two of them, the mean over orders and over the methods that have curves."""
        rows = [row for row in self.curves if row["task"] == task]
        most, pairs = max((row["models"] for row in rows), default=0), []
        for method in sorted({row["method"] for row in rows}):
            ends: dict[int, dict[int, list[float]]] = {2: {}, most: {}}
            for row in rows:
                if row["method"] == method and row["models"] in ends:
                    ends[row["models"]].setdefault(row["seed"], []).append(row[column])
            all_of_them, two = ({seed: float(np.mean(x)) for seed, x in ends[m].items()} for m in (most, 2))
            pairs.append((all_of_them, two))
        return paired(pairs)

    def ranges(self, task: str, method: str, field: str, column: str) -> list[float]:
        """How much a score changes over the values of a hyper-parameter: for each seed its largest less its smallest."""
        by_seed: dict[int, list[float]] = {}
        for row in self.sensitivity:
            if (row["task"], row["method"], row["field"]) == (task, method, field):
                by_seed.setdefault(row["seed"], []).append(row[column])
        return [max(x) - min(x) for x in by_seed.values()]

    def fields(self, task: str) -> list[tuple[str, str]]:
        """Methods and their hyper-parameters that were varied."""
        return list(dict.fromkeys((row["method"], row["field"]) for row in self.sensitivity if row["task"] == task))

    def work(self, task: str, method: str) -> float:
        """Operations of one merge, or of learning at one rate; the mean over seeds."""
        learning = [row["learning_flops"] / max(row["tried"], 1) for row in self.of(task, method)]
        return self.mean(task, method, "merge_flops") + float(np.mean(learning))

    def cost(self, task: str, method: str) -> float:
        """Operations of statistics and merge, or of learning at one rate: nothing is tuned."""
        return self.mean(task, method, "statistics_flops") + self.work(task, method)

    def cost_with_tuning(self, task: str, method: str) -> float:
        """Statistics once; merging as often as something was tried, judging where there was a choice; learning at all rates."""
        tried = self.mean(task, method, "tried")
        judged = self.mean(task, method, "judging_flops") if tried > 1 else 0
        once = self.mean(task, method, "statistics_flops") + self.mean(task, method, "learning_flops")
        return once + tried * (self.mean(task, method, "merge_flops") + judged)


def different(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "k 2"]:
    """The first of those that are less than SAME apart in both coordinates."""
    found: list[np.ndarray] = []
    for point in points:
        if not any((np.abs(point - other) < SAME).all() for other in found):
            found.append(point)
    return np.array(found).reshape(-1, 2)


def read(folder: Path) -> Results:
    """What was measured, of a folder."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return Results(settings, *(read_rows(folder / f"{name}.csv") for name in ("rows", "sensitivity", "curves")))
