"""What the commands of experiments share: how they start, their options, and what a summary tells of a run."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from alignment.checks import unknown
from experiments.data import Images
from experiments.parents import seconds_of
from experiments.problem import Task, first
from experiments.run import Preset, Rows, machine

PresetOption = Annotated[Preset, typer.Option(help="How much work.")]
Out = Annotated[Path, typer.Option(help="Folder of the results.")]
Seed = Annotated[int, typer.Option(min=0, help="The first seed.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds.")]
Data = Annotated[str, typer.Option(help="A folder with the data sets; by default they are looked for.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch data sets that are not found.")]
Only = Annotated[list[str] | None, typer.Option("--task", help="Only the rows of this task; may be repeated.")]


def launch(main: Callable[..., None]) -> None:
    """Run a command; bad input, and what the file system refuses, ends in one line and exit status 2.

    Args:
        main: the command, with options as typer reads them. With `python -X dev` its errors keep their traceback.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except (ValueError, OSError) as error:
        if sys.flags.dev_mode:
            raise
        typer.echo(f"error: {error} (python -X dev -m ... shows where)", err=True)
        sys.exit(2)


class Named(Protocol):
    """What has a name, such as a task."""

    @property
    def name(self) -> str:
        """That it is asked for by."""
        ...


def check_tasks(tasks: Sequence[Named], only: Sequence[str]) -> None:
    """Raise ValueError for a name that is none of a task's, with the nearest one."""
    known = [task.name for task in tasks]
    for name in only:
        if name not in known:
            raise ValueError(unknown("task", name, known))


def command_of(name: str, preset: Preset, out: Path, seeds: range, *, data: str = "", only: Sequence[str] = ()) -> str:
    """What makes the same rows again."""
    options: list[tuple[str, object]] = [("preset", preset), ("out", out), ("seed", seeds.start), ("seeds", len(seeds))]
    options += [("data", data)] if data else []
    options += [("task", task) for task in only]
    given = (str(word) for option, value in options for word in (f"--{option}", value))
    return shlex.join(["python", "-m", f"experiments.{name}", *given])


def told(rows: Rows, tasks: Sequence[Task], images: Mapping[str, Images]) -> dict[str, Any]:
    """Of a run: how many training images each task has, the machine, and the seconds of the networks and of all rows."""
    counts = {task.name: len(first(images[task.data], task.images).train.labels) for task in tasks}
    seconds = {"parents": seconds_of(rows.path.parent / "parents"), "rows": round(sum(row["seconds"] for row in rows.all), 1)}
    return {"images": counts, "machine": machine(), "seconds": seconds}
