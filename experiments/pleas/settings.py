"""What the experiment on PLeaS does: tasks of two networks each, and the names in its rows."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from experiments.problem import Task as Trained
from experiments.problem import Training
from experiments.run import Preset
from npmerge.models import ResNetCifar, Vgg

PARENTS, ELSEWHERE, ENSEMBLE = "networks, each on its own part", "networks, on both parts", "ensemble"
PLAIN, REGMEAN, WEIGHTS = "average as it is", "RegMean", "permutation by weights"
PARTIAL, ZIPPED = "permutation by activations", "ZipIt"
CLOSED, GRADIENT, SEQUENTIAL = "PLeaS, closed form", "PLeaS, as published", "PLeaS, sequential"
DISTILLED = "control: permutation, distilled without labels"
CONTROL, TUNED = "with labels: control, permutation fine-tuned", "with labels: PLeaS, sequential, fine-tuned"

LEVELS = (PARENTS, ELSEWHERE, ENSEMBLE)
SMALL = (PLAIN, REGMEAN, WEIGHTS)
SOLVED = (CLOSED, GRADIENT, SEQUENTIAL)
SIZED = (PARTIAL, *SOLVED, ZIPPED)
"""Merges of any size."""
LABELLED = (CONTROL, TUNED)
METHODS = (*LEVELS, *SMALL, *SIZED, DISTILLED, *LABELLED)
WITHOUT_DATA = (PARTIAL, CLOSED, GRADIENT, SEQUENTIAL)
"""Merges that are also made with other images than those of the tasks, matched by weights, and with their own so matched."""
WITH_NOISE = (CLOSED, GRADIENT)
"""Those of them that are also made with noise."""

OWN, BY_WEIGHTS, NOISE = "own", "own, matched by weights", "noise"
KEY = ("seed", "task", "method", "shared", "source")
"""The columns that say which row it is."""


@dataclass(frozen=True)
class Task(Trained):
    """Two networks with a part of a data set each.

    Attributes:
        division: "halves" of the images, "domains" with the same labels, or disjoint "classes", for which networks keep heads.
        domains: the two, where the division is by them.
        others: images in the place of those of the task: names of data sets, or "noise".
    """

    division: Literal["halves", "domains", "classes"] = "halves"
    domains: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def heads(self) -> bool:
        """Whether each network keeps its own."""
        return self.division == "classes"


@dataclass(frozen=True)
class Settings:
    """How much work a run does.

    Attributes:
        tasks: data and networks.
        shared: stages of a network that ZipIt zips: the sizes of all merges. The first is all of them, 0 is both networks.
        other_shared: of merges with other images, and of those matched by weights.
        zipped: (alpha, beta) of ZipIt.
        scales: of what is off the diagonal in RegMean.
        descent_batch: images of a step of the gradient descent.
        descent_steps: of it.
        steps: of fine-tuning and distillation.
        batch: images of a step.
        rates: of Adam.
        further: rates at most that are tried beyond an end of a grid, while the best one lies there.
    """

    tasks: tuple[Task, ...]
    shared: tuple[int, ...] = (3, 2, 1, 0)
    other_shared: tuple[int, ...] = (2,)
    zipped: tuple[tuple[float, float], ...] = (
        (1e-4, 0.075), *itertools.product((1e-4, 0.3, 1.0), (0.0, 0.125, 0.25, 1.0)),
    )  # fmt: skip
    scales: tuple[float, ...] = (0.0, 0.01, 0.1, 0.5, 0.95, 1.0)
    descent_batch: int = 16
    descent_steps: int = 400
    steps: int = 100
    batch: int = 64
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    further: int = 2

    def task(self, name: str) -> Task:
        """By its name."""
        return next(task for task in self.tasks if task.name == name)


class Job(NamedTuple):
    """A row that is to be made; `shared` is empty where no merge has a size."""

    method: str
    shared: int | str
    source: str


def wanted(settings: Settings, task: Task) -> Iterator[Job]:
    """The rows of a task, in order."""
    yield from (Job(method, "", OWN) for method in LEVELS if method != ELSEWHERE or not task.heads)
    yield from (Job(method, settings.shared[0], OWN) for method in SMALL)
    for shared in settings.shared:
        yield from (Job(method, shared, OWN) for method in (SIZED if shared else (PARTIAL,)))
    yield from (Job(DISTILLED, shared, OWN) for shared in settings.shared[:-1])
    for source, shared in itertools.product((BY_WEIGHTS, *task.others), settings.other_shared):
        yield from (Job(method, shared, source) for method in (WITH_NOISE if source == NOISE else WITHOUT_DATA))
    yield from (Job(method, settings.shared[0], OWN) for method in LABELLED)


def made_with(settings: Settings, names: dict[str, str]) -> dict[str, Any]:
    """What decides every number of a run but its seed; `names` says what was found of each data set."""
    tasks = [dataclasses.asdict(t) | {"architecture": type(t.config).__name__} for t in settings.tasks]
    return {**dataclasses.asdict(settings), "tasks": tasks, "data": names}


DOMAINS = ("art_painting", "cartoon", "photo", "sketch")


def _tasks(base: Task, pairs: tuple[tuple[str, str], ...]) -> tuple[Task, ...]:
    """PACS by domains, pair by pair, and CIFAR-100 by classes, trained for twice as many steps."""
    pacs = [
        dataclasses.replace(
            base, name=f"pacs-{a}-{b}", data="pacs", division="domains", domains=(a, b), others=("cifar100", NOISE)
        )
        for a, b in pairs
    ]
    twice = dataclasses.replace(base.training, steps=2 * base.training.steps)  # many classes
    cifar = dataclasses.replace(base, name="cifar100", data="cifar100", training=twice)
    return (*pacs, dataclasses.replace(cifar, division="classes", others=("cifar10", NOISE)))


_TRIED = Task(
    "digits", "digits", "VGG with BatchNorm", Vgg(((4,), (6,)), (), norm="batch"), Training(rate=1e-2, steps=60, batch=32),
    measured=64, judged=64, division="classes", others=(NOISE,),
)  # fmt: skip
_SMALL = Task(
    "", "", "ResNet-8 of width 12", ResNetCifar(1, 12, "B"), Training(rate=5e-3, steps=500), augment=True, measured=1_000,
    tested=1_000,
)  # fmt: skip
_WIDE = Task(
    "", "", "ResNet-20 of width 64", ResNetCifar(3, 64, "B"), Training("sgd", 0.1, 20_000, 500, 5e-4), augment=True,
    measured=10_000, judged=None,
)  # fmt: skip

PRESETS = {
    Preset.test: Settings(
        (_TRIED,),
        shared=(2, 1, 0), other_shared=(1,), zipped=((1e-4, 0.075), (1.0, 0.0)), scales=(0.5, 1.0), descent_steps=4,
        steps=4, batch=32, rates=(1e-3,),
    ),
    Preset.cpu: Settings(_tasks(_SMALL, (("art_painting", "photo"), ("cartoon", "sketch")))),
    Preset.paper: Settings(_tasks(_WIDE, tuple(itertools.combinations(DOMAINS, 2))), steps=2_000, batch=128),
}  # fmt: skip
