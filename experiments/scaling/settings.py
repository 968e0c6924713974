"""What the experiment on numbers of networks does: groups of networks, how much work, and the names in its rows."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from experiments.run import Preset

NONE, REFERENCE, MEAN, UNIVERSE, SUCCESSIVE = "none", "reference", "mean", "universe", "successive"
ALIGNMENTS = (NONE, REFERENCE, MEAN, UNIVERSE, SUCCESSIVE)
"""How networks are brought together: not at all, each to the first, each to the others' mean, all into a universe, each to the
average of those before it."""

PARENTS, BEST, ENSEMBLE = "networks, on average", "best network", "ensemble of logits"
AVERAGE, REPAIR, REGMEAN, FISHER = "average", "average, REPAIR", "RegMean", "Fisher"
ARITHMETIC, TIES, DARE = "task arithmetic", "TIES", "DARE"
JOINT, TENSORS = "joint simplex, per parameter", "joint simplex, per tensor"
SHORT, PAIRS = "successive pairs, as many steps in all", "successive pairs, as many steps each"
CONTROL, LONG = "control: average fine-tuned", "control: average fine-tuned, as many steps as pairs"
ONE = "control: best network fine-tuned"

LEVELS = (PARENTS, BEST, ENSEMBLE)
OF_A_BASE = (ARITHMETIC, TIES, DARE)
CLOSED = (AVERAGE, REPAIR, REGMEAN, FISHER, *OF_A_BASE)
LEARNED = (JOINT, TENSORS, SHORT, PAIRS)
CONTROLS = (CONTROL, LONG, ONE)
METHODS = (*LEVELS, *CLOSED, *LEARNED, *CONTROLS)

KEY = ("seed", "block", "models", "alignment", "method")
"""The columns that say which row it is."""


@dataclass(frozen=True)
class Block:
    """Networks that are merged with each other.

    Attributes:
        name: in the rows.
        start: "one" initialisation for all networks of a seed, or their "own".
        split: of the training images among all networks, one of `experiments.data.SPLITS`.
        counts: how many are merged: the fewer are the first of the more.
    """

    name: str
    start: Literal["one", "own"]
    split: str
    counts: tuple[int, ...]

    @property
    def alignments(self) -> tuple[str, ...]:
        """In which they are averaged: networks with one start need none."""
        return (NONE,) if self.start == "one" else ALIGNMENTS

    @property
    def home(self) -> str:
        """The alignment of whatever is not about alignments, chosen beforehand."""
        return NONE if self.start == "one" else MEAN


@dataclass(frozen=True)
class Settings:
    """How much work a run does.

    Attributes:
        blocks: what is merged.
        data: the set, one of `experiments.data.CATALOGUE`.
        images: training images at most, of all networks together.
        hidden: widths of the perceptrons.
        rate: of Adam, of training.
        training_steps: of each network.
        measured: training images of its own by which each network is measured, without labels.
        judged: validation images at most, by which everything is chosen.
        tested: test images at most.
        labelled: images that are learned from; no network saw them.
        steps: of Adam, of learning; pairs divide them among their turns, one at least for each.
        batch: images of a step, of training and of learning.
        scales: of task vectors, of which validation data choose; divided by the number of networks where they are summed.
        shrinks: what RegMean multiplies off-diagonal elements by, likewise.
        learned_rates: of Adam for coefficients.
        control_rates: for weights; as many.
        further: rates and scales at most that are tried beyond an end of a grid, while the best one lies there.
    """

    blocks: tuple[Block, ...]
    data: str = "mnist"
    images: int | None = 20_000
    hidden: tuple[int, ...] = (64, 64)
    rate: float = 3e-3
    training_steps: int = 300
    measured: int = 100
    judged: int | None = 1000
    tested: int | None = None
    labelled: int = 100
    steps: int = 63
    batch: int = 50
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    shrinks: tuple[float, ...] = (0.0, 0.1, 0.5, 0.9, 1.0)
    learned_rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    control_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    further: int = 4


def made_with(settings: Settings, name: str) -> dict[str, Any]:
    """What decides every number of a run but its seed; `name` says which data were found."""
    return {**dataclasses.asdict(settings), "data": name}


_TO_64 = (2, 4, 8, 16, 32, 64)

PRESETS = {
    Preset.test: Settings(
        (Block("one start", "one", "dirichlet", (2, 3)), Block("own starts", "own", "same", (3,))),
        data="digits", images=600, hidden=(6,), rate=1e-2, training_steps=30, measured=20, judged=60, tested=100, labelled=40,
        steps=4, batch=20, scales=(1.0,), shrinks=(0.5,), learned_rates=(0.1,), control_rates=(1e-3,),
    ),
    Preset.cpu: Settings((
        Block("one start, parts", "one", "dirichlet", _TO_64),
        Block("own starts, parts", "own", "dirichlet", _TO_64),
        Block("own starts, same images", "own", "same", _TO_64),
    )),
    Preset.paper: Settings(
        (
            Block("one start, parts", "one", "dirichlet", _TO_64),
            Block("own starts, parts", "own", "dirichlet", _TO_64),
            Block("own starts, same images", "own", "same", _TO_64),
        ),
        images=None, hidden=(512, 512, 512), training_steps=3000, measured=1000, judged=None, labelled=1000, steps=500,
        batch=128, scales=(0.25, 0.5, 1.0, 1.5, 2.0),
    ),
}  # fmt: skip
