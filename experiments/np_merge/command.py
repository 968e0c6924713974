"""From a preset to a folder of results."""

from collections.abc import Sequence
from pathlib import Path

from experiments.command import check_tasks, command_of, told
from experiments.folder import write_result, write_summary
from experiments.np_merge.experiment import run
from experiments.np_merge.figures import figures
from experiments.np_merge.page import page
from experiments.np_merge.presets import PRESETS
from experiments.np_merge.results import Results, means
from experiments.np_merge.settings import KEY, made_with
from experiments.problem import first, images_of
from experiments.run import Preset, Rows


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
    check_tasks(settings.tasks, only)
    images = images_of(settings.tasks, data, download=download)
    found = {name: x.name for name, x in images.items()}
    rows = Rows(out / "rows.csv", KEY, made_with(settings, list(found.items())))
    for seed in seeds:
        for task in settings.tasks:
            if not only or task.name in only:
                run(settings, task, first(images[task.data], task.images), seed, rows)
    command = command_of("np_merge", preset, out, seeds, data=data, only=only)
    of_run = told(rows, settings.tasks, images)
    summary = {"preset": str(preset), "command": command, "data": found, **of_run, "means": list(means(rows.all))}
    write_summary(out, summary)
    write_result(out, figures(Results(rows.all, settings, of_run["images"])), page)
