"""What the experiment on NP Merge does: tasks, blocks of a factorial, and the names in its rows."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from experiments.problem import Task as Trained

PARENTS, BEST, ENSEMBLE = "networks, on average", "best network", "ensemble of logits"
AVERAGE, FISHER = "average", "Fisher"
PARAMETERS, CHANNELS = "NP Merge: a coefficient per parameter", "a coefficient per channel"
TENSORS, SCALAR = "a coefficient per tensor", "one coefficient per model"
FROM_FISHER = "NP Merge from Fisher"
PAIRS, LONG_PAIRS = "NP Merge in pairs, as many steps in all", "NP Merge in pairs, as many steps for each pair"
CONTROL, LONG_CONTROL = "control: average fine-tuned", "control: average fine-tuned, as many steps as the pairs"
FISHER_CONTROL = "control: Fisher fine-tuned"
ONE, SCRATCH = "control: first network fine-tuned", "control: from scratch"

METHODS = (
    PARENTS, BEST, AVERAGE, FISHER, SCALAR, TENSORS, CHANNELS, PARAMETERS, FROM_FISHER, PAIRS, LONG_PAIRS,
    CONTROL, FISHER_CONTROL, ONE, SCRATCH, LONG_CONTROL, ENSEMBLE,
)  # fmt: skip
CONTROLS = (CONTROL, FISHER_CONTROL, ONE, SCRATCH, LONG_CONTROL)
UNLABELLED = (PARENTS, BEST, AVERAGE, ENSEMBLE)
UNALIGNED = (PARENTS, BEST, ENSEMBLE, ONE, SCRATCH)
"""Methods that no alignment changes."""

PLAIN, WEIGHTS, ACTIVATIONS, CCA, ZIPIT = "plain", "weight matching", "activation matching", "CCA", "ZipIt"
STARTS = (PLAIN, WEIGHTS, ACTIVATIONS, CCA, ZIPIT)
OWN, COMMON = "own", "common"

KEY = ("seed", "task", "initialisation", "split", "models", "start", "method", "labelled")
"""The columns that say which row it is."""


@dataclass(frozen=True)
class Learning:
    """What every learned merge and its control may use. All grids of rates are of one length: everything is tuned alike.

    Attributes:
        steps: of Adam, whose rate falls to zero along a cosine.
        batch: labelled images of a step.
        judgements: moments at which validation data are looked at, besides the start.
        merge_rates: for latents of a coefficient per parameter.
        coarse_rates: for latents of coefficients that are shared.
        control_rates: for weights.
        scratch_rates: for weights without a start.
        further: rates at most that are tried beyond an end of a grid, while the best one lies there.

    Raises:
        ValueError: grids of different lengths.
    """

    steps: int = 100
    batch: int = 64
    judgements: int = 4
    merge_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    coarse_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    control_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    scratch_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
    further: int = 2

    def __post_init__(self) -> None:
        grids = self.merge_rates, self.coarse_rates, self.control_rates, self.scratch_rates
        if len(set(map(len, grids))) > 1:
            raise ValueError(f"all grids of rates must be of one length, got {grids}")

    def rates(self, method: str) -> tuple[float, ...]:
        """Those that a method is tuned over."""
        if method == SCRATCH:
            return self.scratch_rates
        if method in (SCALAR, TENSORS, CHANNELS):
            return self.coarse_rates
        return self.control_rates if method in CONTROLS else self.merge_rates


@dataclass(frozen=True)
class Task(Trained):
    """A data set and an architecture, and what is learned from there.

    Attributes:
        learning: of merges and controls.
        fisher: labelled images at most that Fisher information is measured on.
    """

    learning: Learning = Learning()
    fisher: int = 256


@dataclass(frozen=True)
class Block:
    """A part of the factorial: every combination of what it lists, and the table that shows it.

    Attributes:
        title: of the table.
        task: its name.
        methods: rows of the table.
        across: what its columns differ in.
        initialisations: whether the networks have each their own, or a common one.
        splits: of the training images among the networks.
        models: how many.
        starts: alignments.
        labelled: fractions of the training images that have labels for merging.
    """

    title: str
    task: str
    methods: tuple[str, ...]
    across: Literal["initialisation", "split", "models", "start", "labelled"]
    initialisations: tuple[str, ...] = (OWN,)
    splits: tuple[str, ...] = ("80-20",)
    models: tuple[int, ...] = (2,)
    starts: tuple[str, ...] = (ACTIVATIONS,)
    labelled: tuple[float, ...] = (0.05,)


@dataclass(frozen=True)
class Settings:
    """How much work a run does."""

    tasks: tuple[Task, ...]
    blocks: tuple[Block, ...]
    gammas: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)  # of CCA, chosen on validation data

    def task(self, name: str) -> Task:
        """By its name."""
        return next(task for task in self.tasks if task.name == name)


class Job(NamedTuple):
    """A row to be: the columns that say which one it is, but for the seed. What a method does not depend on is empty."""

    task: str
    initialisation: str
    split: str
    models: int
    start: str
    method: str
    labelled: int


def job(point: Job, images: int, fraction: float) -> Job:
    """The row at a point of the factorial, of so many training images of which a fraction is labelled."""
    count = 0 if point.method in UNLABELLED else max(1, round(fraction * images))
    if point.method == SCRATCH:
        return Job(point.task, "", "", 0, "", SCRATCH, count)
    return point._replace(start="" if point.method in UNALIGNED else point.start, labelled=count)


def jobs(block: Block, images: int) -> Iterator[Job]:
    """The rows of a block, each once, networks together."""
    axes = (block.initialisations, block.splits, block.models, block.starts, block.labelled, block.methods)
    found = (
        job(Job(block.task, initialisation, split, models, start, method, 0), images, fraction)
        for initialisation, split, models, start, fraction, method in itertools.product(*axes)
        if models > 2 or method not in (PAIRS, LONG_PAIRS, LONG_CONTROL)  # of two models they are the joint merge
    )
    yield from dict.fromkeys(found)


def made_with(settings: Settings, names: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What decides every number of a run but its seed; `names` are (data set, what was found of it)."""
    tasks = [dataclasses.asdict(t) | {"architecture": type(t.config).__name__} for t in settings.tasks]
    blocks = [dataclasses.asdict(b) for b in settings.blocks]
    return {"tasks": tasks, "blocks": blocks, "gammas": list(settings.gammas), "data": dict(names)}
