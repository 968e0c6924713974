"""From a preset to a folder of results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.checks import unknown
from experiments.np_merge.experiment import run
from experiments.np_merge.figures import figures
from experiments.np_merge.page import page
from experiments.np_merge.presets import PRESETS
from experiments.np_merge.results import Results, means
from experiments.np_merge.settings import KEY, made_with
from experiments.parents import seconds_of
from experiments.problem import first, images_of
from experiments.run import Preset, Rows, machine


def reproduce(
    preset: Preset, out: Path, seeds: range, *, data: str = "", download: bool = False, only: Sequence[str] = ()
) -> None:
    """Make every row that is not there yet, then figures, summary and page.

    Args:
        preset: how much work.
        out: folder of the results.
        seeds: of which.
        data: a folder with the data sets; empty to look for them.
        download: whether to fetch those that are not found.
        only: tasks to make rows of; all if empty.

    Raises:
        ValueError: an unknown task, missing data (what it is, where it comes from), rows made with other settings.
    """
    settings = PRESETS[preset]
    for name in only:
        if name not in (known := [task.name for task in settings.tasks]):
            raise ValueError(unknown("task", name, known))
    images = images_of(settings.tasks, data, download=download)
    found = {name: x.name for name, x in images.items()}
    rows = Rows(out / "rows.csv", KEY, made_with(settings, list(found.items())))
    for seed in seeds:
        for task in settings.tasks:
            if not only or task.name in only:
                run(settings, task, first(images[task.data], task.images), seed, rows)
    command = f"python -m experiments.np_merge --preset {preset} --out {out} --seed {seeds.start} --seeds {len(seeds)}"
    command += (f" --data {data}" if data else "") + "".join(f" --task {name}" for name in only)
    counts = {task.name: len(first(images[task.data], task.images).train.labels) for task in settings.tasks}
    told = {"preset": str(preset), "command": command, "data": found, "images": counts, **summary(rows)}
    (out / "summary.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    for name, drawing in figures(Results(rows.all, settings, counts)).items():
        drawing.savefig(out / f"{name}.png", dpi=150)
    (out / "README.md").write_text(page(out), encoding="utf-8")


def summary(rows: Rows) -> dict[str, Any]:
    """The machine, how long it took, and the mean and deviation of each row over seeds."""
    seconds = {"parents": seconds_of(rows.path.parent / "parents"), "rows": round(sum(row["seconds"] for row in rows.all), 1)}
    return {"machine": machine(), "seconds": seconds, "means": list(means(rows.all))}
