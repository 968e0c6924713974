"""From a preset to a folder of results."""

from collections.abc import Sequence
from pathlib import Path

from experiments.cca_merge.page import write
from experiments.cca_merge.rows import Experiment, files
from experiments.cca_merge.settings import PRESETS, made_with
from experiments.command import check_tasks, command_of, told
from experiments.folder import write_summary
from experiments.problem import Problem, images_of
from experiments.run import Preset, forget_compiled


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
    found = files(out, made_with(settings, {name: x.name for name, x in images.items()}))
    for seed in seeds:
        for block in settings.blocks:
            if not only or block.task in only:
                task = settings.task(block.task)
                Experiment(settings, block, Problem(task, images[task.data], seed), found).run()
                forget_compiled()
    command = command_of("cca_merge", preset, out, seeds, data=data, only=only)
    summary = {"preset": str(preset), "command": command, **told(found.rows, settings.tasks, images)}
    write_summary(out, summary)
    write(out)
