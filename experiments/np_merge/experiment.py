"""The rows of one seed, group by group of networks, written one by one."""

import time
from collections.abc import Iterable, Mapping

import typer

from experiments.data import Images
from experiments.np_merge.methods import measure
from experiments.np_merge.networks import Group, Networks
from experiments.np_merge.settings import SCRATCH, Job, Settings, Task, jobs
from experiments.problem import Problem
from experiments.run import Rows


def run(settings: Settings, task: Task, images: Images, seed: int, rows: Rows) -> None:
    """Every row of a task that is not there yet; trained networks are kept in the folder `parents` beside the rows."""
    wanted = wanted_of(settings, task, len(images.train.labels))
    left = [job for job in wanted if not rows.has(seed=seed, **job._asdict())]
    if not left:
        return
    problem = Problem(task, images, seed)
    for group, several in _grouped(left).items():
        folder = rows.path.parent / "parents"
        networks = None if group is None else Networks(problem, group, folder, settings.gammas)
        for job in several:
            began, before = time.perf_counter(), networks.seconds if networks else 0.0
            row = {"seed": seed, **job._asdict(), **measure(problem, networks, job)}
            seconds = time.perf_counter() - began - ((networks.seconds if networks else 0.0) - before)
            rows.add(row | {"seconds": round(seconds, 2)})
            typer.echo(f"seed {seed}: {', '.join(str(x) for x in job if x)}: accuracy {row['accuracy']:.4f}", err=True)


def wanted_of(settings: Settings, task: Task, images: int) -> list[Job]:
    """The rows of a task: those of all its blocks, each once."""
    return list(dict.fromkeys(job for block in settings.blocks if block.task == task.name for job in jobs(block, images)))


def _grouped(wanted: Iterable[Job]) -> Mapping[Group | None, list[Job]]:
    found: dict[Group | None, list[Job]] = {}
    for job in wanted:
        group = None if job.method == SCRATCH else Group(job.initialisation, job.split, job.models)
        found.setdefault(group, []).append(job)
    return found
