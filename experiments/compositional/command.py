"""From a preset to a folder of results."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.command import check_tasks, command_of
from experiments.compositional.case import Case, Classified, image_network, text_network
from experiments.compositional.generation import Generated, generation_cells
from experiments.compositional.images import image_cells, read_pool
from experiments.compositional.networks import FEATURES
from experiments.compositional.page import write
from experiments.compositional.presets import PRESETS
from experiments.compositional.rows import Experiment, files
from experiments.compositional.settings import Task, made_with
from experiments.compositional.texts import CORPORA, text_cells
from experiments.folder import write_summary
from experiments.parents import seconds_of
from experiments.run import Preset, forget_compiled, machine

Make = Callable[[int], Case]


def reproduce(preset: Preset, out: Path, seeds: range, *, data: str = "", only: Sequence[str] = ()) -> None:
    """Make every row that is not there yet, then figures, summary and page.

    Args:
        preset: how much work.
        out: folder of the results.
        seeds: of which.
        data: a folder with the data sets; empty to look for them.
        only: tasks to make rows of; all if empty.

    Raises:
        ValueError: an unknown task, missing data (what it is, where it comes from), rows made with other settings.
    """
    settings = PRESETS[preset]
    check_tasks(settings.tasks, only)
    makes = {task.name: prepared(task, out / "parents", data) for task in settings.tasks if not only or task.name in only}
    found = files(out, made_with(settings))
    for seed in seeds:
        for make in makes.values():
            Experiment(make(seed), found).run()
            forget_compiled()
    command = command_of("compositional", preset, out, seeds, data=data, only=only)
    seconds = {"parents": seconds_of(out / "parents"), "rows": round(sum(row["seconds"] for row in found.rows.all), 1)}
    summary: dict[str, Any] = {"preset": str(preset), "command": command, "machine": machine(), "seconds": seconds}
    write_summary(out, summary)
    write(out)


def prepared(task: Task, parents: Path, data: str = "") -> Make:
    """A task with its data read, as a function of the seed. Raises ValueError for missing data."""
    if task.setting == "text":
        corpus = CORPORA[task.data](data)
        classes = (*corpus.classes, FEATURES)

        def text(seed: int) -> Case:
            cells = text_cells(task, corpus, seed)
            config = text_network(task, task.vocabulary, task.length, sum(classes))
            return Classified(task, cells, seed, parents, config=config, classes=classes)

        return text
    pool = read_pool(task.data, data)
    if task.setting == "generation":

        def generation(seed: int) -> Case:
            cells, real = generation_cells(task, pool, seed)
            return Generated(task, cells, seed, parents, real)

        return generation

    def images(seed: int) -> Case:
        cells = image_cells(task, pool, seed)
        categories = len(cells.grid.categories)
        classes = (2,) * categories + (FEATURES,)
        config = image_network(task, cells.base.inputs["x"].shape[1:], sum(classes))
        return Classified(task, cells, seed, parents, config=config, classes=classes)

    return images
