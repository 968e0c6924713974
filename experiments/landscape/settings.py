"""What the experiment on the inside of merges does, and the names in its rows."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment import CCA as CANONICAL
from alignment import ActivationMatching, WeightMatching
from alignment.base import Alignment
from experiments.problem import Task, Training
from experiments.run import Preset
from experiments.strangers.settings import PAIR
from npmerge.models import ResNetCifar, Vgg

A, B, UNTRAINED = "network A", "network B", "untrained network"
RENEWED = {A: "network A, statistics re-estimated", B: "network B, statistics re-estimated"}
"""The parents with BatchNorm treated as that of all merges."""

PLAIN, PERMUTED = "average as it is", "permuted average"
LEARNED, CONTROL = "NP Merge", "control: permuted average fine-tuned"
ENSEMBLE = "ensemble of their logits"
PLAIN_OF_B = "average as it is, in the order of B's units"
"""Whose unit j has a half of B's unit j, as the average as it is has one of A's."""

INSIDE = (A, B, PLAIN, PERMUTED, LEARNED, CONTROL)
"""The networks that are looked into; B in the units of A."""

UNALIGNED, MATCHED = "no alignment", "activation matching"

LINES: Mapping[str, Alignment | None] = {
    UNALIGNED: None,
    "weight matching": WeightMatching(),
    MATCHED: ActivationMatching(),
    "CCA": CANONICAL(approximate=True),
}
"""The alignments before which lines are drawn."""

PERMUTATIONS = ("weight matching", MATCHED)
"""Those of them that leave the networks the functions that they are."""

BEFORE, AFTER = "before alignment", "after alignment"
ONE, TENTH, BOTH = "one image moved", "a tenth of the images moved", "one image moved, in both networks"


@dataclass(frozen=True)
class Ascent:
    """Activation maximisation: from noise, by Adam, to an image that a unit answers to.

    Attributes:
        steps: of Adam.
        rate: of it, in deviations of a pixel.
        jitter: pixels by which the image is shifted at most in each step, another way in each.
        variation: the weight of the total variation of an image, a mean over its pixels.
        decay: the weight of the mean square of its pixels.
        noise: the deviation of the noise at the start.
    """

    steps: int = 128
    rate: float = 0.05
    jitter: int = 2
    variation: float = 0.3
    decay: float = 0.02
    noise: float = 0.5


@dataclass(frozen=True)
class Settings:
    """How much work a run does.

    Attributes:
        pairs: of networks that are merged, a pair for each seed in turn: names of `strangers.networks.SOURCES`, or files; none
            to train two for each seed.
        task: that networks are trained for, and whose data are taken.
        images: training images that merges and validation see.
        measured: of them, for alignments and statistics of BatchNorm.
        steps: of NP Merge and its control.
        batch: images of a step.
        merge_rates: of Adam for coefficients.
        control_rates: for weights; as many.
        further: rates at most that are tried beyond an end of a grid, while the best one lies there.
        points: on a line.
        side: of the grid of a plane.
        judged: test images of lines.
        sliced: test images of planes.
        tested: test images of networks; None for all.
        compared: test images for similarity.
        layers: that are visualised, from the first to the last.
        units: of each.
        ascent: how.
        distances: by which features are moved, in their own deviations.
    """

    task: Task
    pairs: tuple[tuple[str, str], ...] = (PAIR, (PAIR[0], "resnet20_bognev"), (PAIR[1], "resnet20_bognev"))
    images: int = 5_000
    measured: int = 1_000
    steps: int = 200
    batch: int = 128
    merge_rates: tuple[float, ...] = (0.0125, 0.05, 0.2)
    control_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    further: int = 2
    points: int = 11
    side: int = 9
    judged: int = 2_000
    sliced: int = 500
    tested: int | None = 5_000
    compared: int = 500
    layers: int = 4
    units: int = 6
    ascent: Ascent = Ascent()
    distances: tuple[float, ...] = (1.0, 10.0, 100.0)


_SMALL = Vgg(((6,), (8,)), (), norm="batch")
_DIGITS = Task("digits", "digits", "VGG with BatchNorm", _SMALL, Training(rate=1e-2, steps=80, batch=32))
_CIFAR = Task("cifar10", "cifar10", "ResNet", ResNetCifar())

PRESETS = {
    Preset.test: Settings(
        _DIGITS, (), images=200, measured=180, steps=4, batch=32, merge_rates=(0.2,), control_rates=(3e-3,),
        points=3, side=3, judged=100, sliced=60, tested=100,
        compared=40, layers=2, units=2, ascent=Ascent(steps=12, jitter=1, variation=0.1), distances=(10.0,),
    ),
    Preset.cpu: Settings(_CIFAR),
    Preset.paper: Settings(
        _CIFAR, images=20_000, measured=18_000, steps=4_000,
        points=51, side=41, judged=10_000, sliced=2_000, tested=None, compared=2_000, layers=12, units=16,
        ascent=Ascent(steps=1_024),
    ),
}  # fmt: skip


def made_with(settings: Settings, data: str) -> dict[str, Any]:
    """What decides every number of a run but its seed; `data` says what was found."""
    return dataclasses.asdict(settings) | {"data": data}
