"""What the experiment on strangers' networks does: how much work, and the names of its rows."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from experiments.run import Preset
from experiments.strangers.alignments import ALIGNMENTS, MATCHING, ZIPPED
from experiments.strangers.ways import (
    CONTROL,
    LEARNED,
    SOLVED,
    TAUGHT_SOLVED,
    WAYS,
)

PARENTS, ENSEMBLE = "parents, on average", "ensemble of their logits"
PLAIN = "no alignment"
AVERAGE, RESET, REPAIR = "average", "average, statistics re-estimated", "average, REPAIR"
PARTIAL, TEACHER = "PLeaS", "PLeaS, teacher-forced"


@dataclass(frozen=True)
class Part:
    """What is done with some of the networks.

    Attributes:
        networks: that are merged: names of `networks.SOURCES`, or files.
        seeds: how many of the seeds; they differ in which images are drawn.
        alignments: that are averaged, names of `ALIGNMENTS`.
        forced: whether least squares on the parents' own activations stand beside sequential ones.
        sizes: of PLeaS, in multiples of one network.
        images: numbers of training images that learned merges see, validation images included.
        ways: what is learned from each number of images, names of `WAYS`.
        path: points on the lines between two networks; none for 0.
    """

    networks: tuple[str, ...]
    seeds: int = 3
    alignments: tuple[str, ...] = (MATCHING,)
    forced: bool = False
    sizes: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0)
    images: tuple[int, ...] = (5_000,)
    ways: tuple[str, ...] = (LEARNED, CONTROL)
    path: int = 0

    def of(self, networks: tuple[str, ...]) -> "Part":
        """The same with other networks."""
        return dataclasses.replace(self, networks=networks)


@dataclass(frozen=True)
class Settings:
    """How much work a run does.

    Attributes:
        parts: what is done with which networks.
        measured: training images at most, without their labels, for alignments, least squares and statistics of BatchNorm;
            as many for merges that learn nothing.
        steps: of every learned merge and control.
        batch: images of a step.
        tuned: number of images at which rates are chosen, in the first seed; other rows take the rates from there, and a way
            that is not tried with so many chooses in its own first row.
        limit: test images; None for all.
    """

    parts: tuple[Part, ...]
    measured: int = 2_000
    steps: int = 200
    batch: int = 64
    tuned: int = 5_000
    limit: int | None = None


def made_with(settings: Settings, data: str) -> dict[str, Any]:
    """What decides every number of a run but its seeds. Parts are left out: they say which rows there are."""
    shared = {name: value for name, value in vars(settings).items() if name != "parts"}
    return shared | {"rates": {name: way.rates for name, way in WAYS.items()}, "data": data}


PAIR = ("resnet20_akamaster", "resnet20_zheng")
OTHERS = (
    ("resnet20_akamaster", "resnet20_bognev"),
    ("resnet20_zheng", "resnet20_bognev"),
    ("resnet20_akamaster", "resnet20_zheng", "resnet20_bognev"),
    ("resnet56_akamaster", "resnet56_zheng"),
)
COUNTS = (500, 2_000, 5_000, 20_000)
EVERYTHING = Part(PAIR, alignments=tuple(ALIGNMENTS), forced=True, images=COUNTS, ways=tuple(WAYS), path=11)

PRESETS = {
    Preset.test: Settings(
        (
            Part(PAIR, 1, (ZIPPED,), sizes=(), images=(44,), ways=(TAUGHT_SOLVED,)),
            Part(PAIR, 1, (MATCHING,), sizes=(1.5,), images=(40, 44), ways=(LEARNED, CONTROL), path=2),
        ),
        measured=36, steps=2, batch=16, tuned=44, limit=100,
    ),
    Preset.cpu: Settings((
        Part(PAIR, sizes=(1.0,), images=COUNTS, ways=(LEARNED, CONTROL, SOLVED)),
        Part(PAIR, sizes=(1.0,), images=(20_000,), ways=(TAUGHT_SOLVED,)),
        dataclasses.replace(EVERYTHING, seeds=1, images=(5_000,)),
        *(Part(networks, seeds=1, sizes=(1.0, 1.5)) for networks in OTHERS),
    )),
    Preset.paper: Settings(tuple(EVERYTHING.of(networks) for networks in (PAIR, *OTHERS)), steps=4_000, batch=128),
}  # fmt: skip
