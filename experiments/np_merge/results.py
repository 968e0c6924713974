"""Rows read back: values of a point of the factorial over seeds, and paired differences between methods."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.differences import Difference
from experiments.np_merge.settings import KEY, SCRATCH, UNALIGNED, UNLABELLED, Block, Job, Settings, job, jobs
from experiments.run import mean_and_deviation


class Results:
    """The rows of an experiment.

    Args:
        rows: as `rows.csv` has them.
        settings: what they were made with.
        images: training images of each task.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], settings: Settings, images: Mapping[str, int]):
        self.rows, self.settings, self.images = rows, settings, images

    @functools.cached_property
    def by_job(self) -> dict[Job, dict[int, Mapping[str, Any]]]:
        """For each point the rows by seed."""
        found: dict[Job, dict[int, Mapping[str, Any]]] = {}
        for row in self.rows:
            found.setdefault(Job(*(row[name] for name in KEY[1:])), {})[row["seed"]] = row
        return found

    @functools.cached_property
    def tasks(self) -> set[str]:
        """Those that have rows."""
        return {row["task"] for row in self.rows}

    @property
    def seeds(self) -> list[int]:
        """Of all rows."""
        return sorted({row["seed"] for row in self.rows})

    def values(self, place: Job, column: str = "accuracy") -> list[float]:
        """Of a point, over seeds."""
        return [row[column] for row in self.by_job.get(place, {}).values()]

    def cell(self, place: Job, column: str = "accuracy") -> str:
        """Mean and deviation over seeds; a dash where there is no row."""
        values = self.values(place, column)
        return mean_and_deviation(values) if values else "-"

    def jobs(self, block: Block) -> list[Job]:
        """The points of a block."""
        return list(jobs(block, self.images[block.task]))

    def point(self, place: Job, fraction: float) -> Job:
        """The row at a point of a block, with that fraction labelled."""
        return job(place, self.images[place.task], fraction)

    def difference(self, pairs: Sequence[tuple[Job, Job]], column: str = "accuracy") -> Difference | None:
        """How much more the first of each pair has, where there are rows of both; None where there are none.

        Args:
            pairs: points of the factorial.
            column: of the rows.
        """
        per_seed: dict[int, list[float]] = {}
        for a, b in pairs:
            mine, theirs = self.by_job.get(a, {}), self.by_job.get(b, {})
            for seed in mine.keys() & theirs.keys():
                per_seed.setdefault(seed, []).append(mine[seed][column] - theirs[seed][column])
        if not per_seed:
            return None
        values = tuple(float(np.mean(per_seed[seed])) for seed in sorted(per_seed))
        return Difference(values, max(map(len, per_seed.values())))


def partner(place: Job, method: str) -> Job:
    """The row of another method at the same point."""
    if method == SCRATCH:
        return Job(place.task, "", "", 0, "", SCRATCH, place.labelled)
    found = place._replace(method=method, start="" if method in UNALIGNED else place.start)
    return found._replace(labelled=0) if method in UNLABELLED else found


def means(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Mean and deviation of accuracy and loss over seeds, for each point."""
    found: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in KEY[1:]), []).append(row)
    for key, several in found.items():
        numbers = {name: [row[name] for row in several] for name in ("accuracy", "loss")}
        spread = {f"{name}_deviation": float(np.std(x, ddof=1)) if len(x) > 1 else None for name, x in numbers.items()}
        averages = {name: float(np.mean(x)) for name, x in numbers.items()}
        yield dict(zip(KEY[1:], key, strict=True)) | {"seeds": len(several)} | averages | spread
