"""What the experiment on CCA Merge does: tasks, groups of networks, and the names in its rows."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

from experiments.problem import Task, Training
from experiments.run import Preset
from npmerge.models import ResNetCifar, Vgg

PARENTS, BEST, ENSEMBLE = "networks, on average", "best network", "ensemble of logits"
PLAIN, WEIGHTS, PERMUTED = "no alignment", "weight matching", "permutation"
TRANSPORT, ZIPIT, PROCRUSTES, CCA = "optimal transport", "ZipIt", "Procrustes", "CCA"
ON_TEST = "CCA, gamma chosen on TEST data"
PERMUTED_REPAIR, PERMUTED_LIKE, CCA_REPAIR = "permutation, REPAIR", "permutation, REPAIR of the reference", "CCA, REPAIR"
FOLDED_PERMUTED, FOLDED_PROCRUSTES, FOLDED_CCA = (f"{name}, BatchNorm folded" for name in (PERMUTED, PROCRUSTES, CCA))
TUNED_PERMUTED, TUNED_CCA = "with labels: permutation, fine-tuned", "with labels: CCA, fine-tuned"
TUNED_ONE = "with labels: first network, fine-tuned"

LEVELS = (PARENTS, BEST, ENSEMBLE)
ALIGNMENTS = (PLAIN, WEIGHTS, PERMUTED, TRANSPORT, ZIPIT, PROCRUSTES, CCA)
REPAIRED = (PERMUTED_REPAIR, PERMUTED_LIKE, CCA_REPAIR)
FOLDED = {FOLDED_PERMUTED: PERMUTED, FOLDED_PROCRUSTES: PROCRUSTES, FOLDED_CCA: CCA}
"""Alignments of networks whose BatchNorm is folded, by what they are otherwise."""

TUNED = (TUNED_PERMUTED, TUNED_CCA, TUNED_ONE)
METHODS = (*LEVELS, *ALIGNMENTS, ON_TEST, *FOLDED, *REPAIRED, *TUNED)

FIRST, GOOD, BAD, EVERY = "first", "best", "worst", "each in turn, on average"
CHOICES = (GOOD, BAD, EVERY)
"""Of the network that the others are brought to, besides the first."""

KEY = ("seed", "task", "split", "models", "method", "reference")
"""The columns that say which row it is."""


@dataclass(frozen=True)
class Block:
    """Networks of a task that learn from images which are divided among them in one way.

    Attributes:
        task: its name.
        split: of the training images, one of `experiments.data.SPLITS`.
        counts: how many networks are merged. Where all see the same images, the fewer are the first of the more.
        references: counts at which other networks than the first are the reference.
        repaired: counts at which the average is also repaired: for networks without BatchNorm.
        folded: counts at which networks are also averaged with BatchNorm's scale in the convolutions: for those with BatchNorm.
        tuned: counts at which averages are also fine-tuned.
    """

    task: str
    split: str
    counts: tuple[int, ...]
    references: tuple[int, ...] = ()
    repaired: tuple[int, ...] = ()
    folded: tuple[int, ...] = ()
    tuned: tuple[int, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How much work a run does.

    Attributes:
        tasks: data and networks.
        blocks: what is merged.
        gammas: of CCA, in multiples of the mean variance of a layer's units.
        zipped: (alpha, beta) of ZipIt.
        labelled: images that fine-tuning learns from.
        steps: of fine-tuning.
        batch: labelled images of a step.
        rates: of Adam.
        further: rates at most that are tried beyond an end of a grid, while the best one lies there.
    """

    tasks: tuple[Task, ...]
    blocks: tuple[Block, ...]
    gammas: tuple[float, ...] = (3e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
    zipped: tuple[tuple[float, float], ...] = (
        (1e-4, 0.075), *itertools.product((0.1, 0.3, 0.5, 1.0), (0.0, 0.125, 0.25, 0.5, 1.0)),
    )  # fmt: skip
    labelled: int = 500
    steps: int = 100
    batch: int = 64
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    further: int = 3

    def task(self, name: str) -> Task:
        """By its name."""
        return next(task for task in self.tasks if task.name == name)


def made_with(settings: Settings, names: dict[str, str]) -> dict[str, Any]:
    """What decides every number of a run but its seed; `names` says what was found of each data set."""
    tasks = [dataclasses.asdict(t) | {"architecture": type(t.config).__name__} for t in settings.tasks]
    return {**dataclasses.asdict(settings), "tasks": tasks, "data": names}


_TRIED = Training(rate=1e-2, steps=60, batch=32)
_SGD = Training("sgd", 0.5, 20_000, 500, 5e-4)

PRESETS = {
    Preset.test: Settings(
        (
            Task("digits-vgg", "digits", "VGG", Vgg(((4,), (6,)), ()), _TRIED, measured=100, judged=64, tested=100),
            Task("digits-norm", "digits", "VGG with BatchNorm", Vgg(((4,), (6,)), (), norm="batch"), _TRIED, measured=100,
                 judged=64, tested=100),
        ),
        (
            Block("digits-vgg", "same", (2, 3), references=(3,), repaired=(2,), tuned=(2,)),
            Block("digits-norm", "80-20", (2,), folded=(2,)),
        ),
        gammas=(1e-3, 1.0), zipped=((1e-4, 0.075), (1.0, 0.0)), labelled=40, steps=4, batch=32, rates=(1e-3,),
    ),
    Preset.cpu: Settings(
        (
            Task("usps-vgg", "usps", "VGG of 3 stages", Vgg(((32,), (64,), (64,)), (64,)), Training(steps=300), judged=None),
            Task("usps-resnet-16", "usps", "ResNet-8 of width 16", ResNetCifar(1, 16, "B"), Training(steps=300), judged=None),
            Task("usps-resnet-32", "usps", "ResNet-8 of width 32", ResNetCifar(1, 32, "B"), Training(steps=300), judged=None),
            Task("cifar10-vgg", "cifar10", "VGG of 4 convolutions", Vgg(((16,), (32,), (64, 64)), (64,)),
                 Training(steps=700), augment=True, judged=None, tested=5_000),
            Task("cifar10-resnet", "cifar10", "ResNet-8 of width 16", ResNetCifar(1, 16, "B"),
                 Training(rate=1e-2, steps=1000), augment=True, judged=None, tested=5_000),
        ),
        (
            Block("usps-vgg", "same", (2, 3, 5, 8, 12, 20), references=(5,), repaired=(2, 5, 20), tuned=(2, 5, 20)),
            Block("usps-vgg", "80-20", (2,), repaired=(2,), tuned=(2,)),
            Block("usps-vgg", "dirichlet", (2, 5), references=(5,), repaired=(2, 5), tuned=(2, 5)),
            Block("usps-vgg", "disjoint", (2,), repaired=(2,), tuned=(2,)),
            Block("usps-resnet-16", "same", (2,), folded=(2,), tuned=(2,)),
            Block("usps-resnet-32", "same", (2,), folded=(2,), tuned=(2,)),
            Block("cifar10-vgg", "same", (2, 4), repaired=(2,), tuned=(2,)),
            Block("cifar10-vgg", "80-20", (2,), repaired=(2,), tuned=(2,)),
            Block("cifar10-resnet", "same", (2,), folded=(2,), tuned=(2,)),
            Block("cifar10-resnet", "80-20", (2,), folded=(2,), tuned=(2,)),
        ),
    ),
    Preset.paper: Settings(
        (
            Task("cifar10-vgg", "cifar10", "VGG-11", Vgg(norm="none"),
                 dataclasses.replace(_SGD, rate=0.08), augment=True, measured=50_000, judged=None),
            Task("cifar10-resnet", "cifar10", "ResNet-20 of width 128", ResNetCifar(3, 128, "B"),
                 _SGD, augment=True, measured=50_000, judged=None),
            Task("cifar100-resnet", "cifar100", "ResNet-20 of width 128", ResNetCifar(3, 128, "B"),
                 _SGD, augment=True, measured=50_000, judged=None),
        ),
        tuple(
            block
            for task, extra in (("cifar10-vgg", "repaired"), ("cifar10-resnet", "folded"), ("cifar100-resnet", "folded"))
            for block in (
                Block(task, "same", (2, 3, 5, 10, 20), (5,), **{extra: (2, 5)}, tuned=(2, 5)),
                Block(task, "80-20", (2,), (), **{extra: (2,)}, tuned=(2,)),
                Block(task, "dirichlet", (2, 5), (5,), **{extra: (2,)}, tuned=(2, 5)),
                Block(task, "disjoint", (2, 5), (5,), **{extra: (2,)}, tuned=(2, 5)),
            )
        ),
        gammas=tuple(10.0**k for k in range(-6, 8)),
        zipped=tuple((a, b) for a in (1e-4, 0.01, 0.1, 0.3, 0.5, 1.0) for b in (0.0, 0.0375, 0.075, 0.125, 0.25, 1.0)),
        labelled=5_000, steps=500, batch=128,
    ),
}  # fmt: skip
