"""From a preset to a folder of results."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.command import check_tasks, command_of, told
from experiments.data import load, standardised
from experiments.folder import write_summary
from experiments.pleas.networks import Networks
from experiments.pleas.page import write
from experiments.pleas.parts import parts_of
from experiments.pleas.rows import Experiment, file
from experiments.pleas.settings import NOISE, PRESETS, made_with
from experiments.run import Preset, forget_compiled


def reproduce(
    preset: Preset,
    out: Path,
    seeds: range,
    *,
    data: str = "",
    download: bool = False,
    only: Sequence[str] = (),
    tell: Callable[[str], Any] = print,
) -> None:
    """Make every row that is not there yet, then the figure, summary and page.

    Args:
        preset: how much work.
        out: folder of the results.
        seeds: of which.
        data: a folder with the data sets; empty to look for them.
        download: whether to fetch those that are not found.
        only: tasks to make rows of; all if empty.
        tell: told what has been done.

    Raises:
        ValueError: an unknown task, missing data (what it is, where it comes from), rows made with other settings.
    """
    settings = PRESETS[preset]
    check_tasks(settings.tasks, only)
    names = dict.fromkeys(name for task in settings.tasks for name in (task.data, *task.others) if name != NOISE)
    sets = {name: load(name, data or None, download=download) for name in names}
    rows = file(out, made_with(settings, {name: found.name for name, found in sets.items()}))
    counts: dict[str, list[dict[str, list[int]]]] = {}
    for seed in seeds:
        for task in settings.tasks:
            networks = Networks(task, parts_of(task, sets[task.data], seed), seed, out / "parents", data)
            counts.setdefault(task.name, []).append(networks.counts())
            if not only or task.name in only:
                Experiment(settings, networks, rows, tell).run()
                forget_compiled()
    command = command_of("pleas", preset, out, seeds, data=data, only=only)
    images = {task.data: standardised(sets[task.data]) for task in settings.tasks}
    parts = {
        name: {what: [list(part) for part in zip(*(each[what] for each in found), strict=True)] for what in found[0]}
        for name, found in counts.items()
    }
    summary = {"preset": str(preset), "command": command, **told(rows, settings.tasks, images), "images": parts}
    write_summary(out, summary)
    write(out)
