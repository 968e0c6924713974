"""From a preset to a folder of results."""

import json
from collections.abc import Sequence
from pathlib import Path

from alignment.checks import unknown
from experiments.cca_merge.page import write
from experiments.cca_merge.rows import Experiment, files
from experiments.cca_merge.settings import PRESETS, made_with
from experiments.parents import seconds_of
from experiments.problem import Problem, first, images_of
from experiments.run import Preset, machine


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
    found = files(out, made_with(settings, {name: x.name for name, x in images.items()}))
    for seed in seeds:
        for block in settings.blocks:
            if not only or block.task in only:
                task = settings.task(block.task)
                Experiment(settings, block, Problem(task, images[task.data], seed), found).run()
    command = f"python -m experiments.cca_merge --preset {preset} --out {out} --seed {seeds.start} --seeds {len(seeds)}"
    command += (f" --data {data}" if data else "") + "".join(f" --task {name}" for name in only)
    counts = {task.name: len(first(images[task.data], task.images).train.labels) for task in settings.tasks}
    told = {"preset": str(preset), "command": command, "images": counts, "machine": machine()}
    told["seconds"] = {"parents": seconds_of(out / "parents"), "rows": round(sum(row["seconds"] for row in found.rows.all), 1)}
    (out / "summary.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    write(out)
