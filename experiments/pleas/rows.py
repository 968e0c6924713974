"""The rows of one task and seed: what there is to do, and doing it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pleas.functions import Function, joined
from experiments.pleas.merges import ONE, Merges, Size, distilled, tuned
from experiments.pleas.networks import Judged, Networks, logits_of, rows_of
from experiments.pleas.settings import (
    CONTROL,
    DISTILLED,
    ELSEWHERE,
    KEY,
    LABELLED,
    LEVELS,
    OWN,
    PARENTS,
    PARTIAL,
    SEQUENTIAL,
    Job,
    Settings,
    wanted,
)
from experiments.run import Rows


def file(out: Path, made_with: dict[str, Any]) -> Rows:
    """The rows of a folder. Raises ValueError for rows that were made with other settings."""
    return Rows(out / "rows.csv", KEY, made_with)


class Experiment:
    """One task and seed."""

    def __init__(self, settings: Settings, networks: Networks, rows: Rows, tell: Callable[[str], Any]):
        self.settings, self.networks, self.rows, self.tell = settings, networks, rows, tell
        self.merges = Merges(settings, networks)

    def run(self) -> None:
        """Every row that is not there yet."""
        place = {"seed": self.networks.seed, "task": self.networks.task.name}
        for job in wanted(self.settings, self.networks.task):
            key = place | job._asdict()
            if self.rows.has(**key):
                continue
            began = time.perf_counter()
            row = key | self.measured(job)
            self.rows.add(row | {"seconds": round(time.perf_counter() - began, 2)})
            self.tell(f"{', '.join(str(x) for x in key.values() if x != '')}: accuracy {row['accuracy']:.4f}")

    def measured(self, job: Job) -> dict[str, Any]:
        """The columns of a row."""
        if job.method in LEVELS:
            judged, size = self._level(job.method)
            return _row(judged, size)
        shared = int(job.shared)
        if job.method in LABELLED:
            start = self.merges.make(PARTIAL if job.method == CONTROL else SEQUENTIAL, shared, OWN)
            merged, rate = tuned(self.settings, self.networks, start)
            return _row(self.networks.tested(merged.function), merged.size, rate=rate)
        if job.method == DISTILLED:
            merged, rate = distilled(self.settings, self.networks, self.merges.make(PARTIAL, shared, OWN))
            return _row(self.networks.tested(merged.function), merged.size, rate=rate)
        merged = self.merges.make(job.method, shared, job.source)
        return _row(self.networks.tested(merged.function), merged.size, chosen=merged.chosen)

    def _level(self, method: str) -> tuple[Judged, Size]:
        """The networks themselves: by their own part, by both, and together."""
        n = self.networks
        functions = [Function(n.network.apply, model, n.network.train_apply) for model in n.models]
        logits = [[logits_of(function, test.inputs) for test in n.test] for function in functions]
        if method == ELSEWHERE:
            both = [n.judged(of_model) for of_model in logits]
            accuracy, loss, joint = (float(np.mean([getattr(j, x) for j in both])) for x in ("accuracy", "loss", "joint"))
            return Judged(accuracy, loss, joint, [j.accuracy for j in both]), ONE
        together = [np.asarray(joined(of_part, apart=n.task.heads)) for of_part in zip(*logits, strict=True)]
        if method != PARENTS:
            return n.judged(together), self.merges.size(0)
        if n.task.heads:  # on its own part a network is what the ensemble is among the classes of that part
            return n.judged(together), ONE
        return n.judged([logits[0][0], logits[1][1]]), ONE


def _row(judged: Judged, size: Size, **columns: Any) -> dict[str, Any]:
    sizes = {name: round(x, 4) for name, x in size._asdict().items()}
    return dict(rows_of(judged)) | sizes | {"chosen": "", "rate": ""} | columns
