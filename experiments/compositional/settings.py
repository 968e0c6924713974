"""What the experiment on compositional generalisation does: its tasks, its methods' budgets, and the names in its rows."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from experiments.together import Regime

BASE, EXPERT, EXPERTS, MULTITASK = "base", "expert", "experts, each its own task", "multitask"
HOME = "base, in its own domain"
REAL = "classifier on real images"
PAPER = ("Average", "Slerp", "Mlerp", "TaskArithmetic", "Dare", "Ties", "Fisher", "RegMean", "MaTS")
"""The methods of the paper; SLERP and MLERP, its form for many models, are two of ours."""

CURVES = tuple(name for name in PAPER if name not in ("Slerp", "Mlerp"))
"""Of these the methods that merge fewer networks in the small setting; the others are all but the average there."""

NEWER = (
    "KarcherMean", "ModelStock", "Breadcrumbs", "ConsensusTA", "TsvM", "IsoC", "Wudi", "RegMeanPlusPlus", "ChainOfMerges",
)  # fmt: skip
NP_MERGE, ADA_MERGING, FEATURES = "NP Merge", "AdaMerging", "feature matching"
LEARNED = (NP_MERGE, ADA_MERGING, FEATURES)
ADA_SCALE = 0.3
ADA_START = f"start of {ADA_MERGING}: task arithmetic {ADA_SCALE}"
CONTROLS = {name: f"control of {name}: {'its start' if name == ADA_MERGING else 'average'} fine-tuned" for name in LEARNED}
METHODS = (*PAPER, *NEWER, *LEARNED, *CONTROLS.values())

KEY = ("seed", "task", "method", "expert")
SENSITIVITY_KEY = ("seed", "task", "method", "field", "value")
CURVE_KEY = ("seed", "task", "method", "models", "order")


@dataclass(frozen=True)
class Learning:
    """What every learned merge and its control may use. All grids of rates are of one length: everything is tuned alike.

    Attributes:
        steps: of Adam, its rate falling to zero along a cosine.
        batch: examples of each held-in cell in a step.
        moments: at which held-out data are looked at, besides the start.
        fine_rates: for a coefficient for each parameter.
        coarse_rates: for a coefficient for each tensor.
        control_rates: for weights.
        further: rates at most that are tried beyond an end of a grid, while the best one lies there.

    Raises:
        ValueError: grids of different lengths.
    """

    steps: int = 60
    batch: int = 8
    moments: int = 3
    fine_rates: tuple[float, ...] = (0.01, 0.1, 1.0)
    coarse_rates: tuple[float, ...] = (0.001, 0.01, 0.1)
    control_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    further: int = 2

    def __post_init__(self) -> None:
        grids = self.fine_rates, self.coarse_rates, self.control_rates
        if len(set(map(len, grids))) > 1:
            raise ValueError(f"all grids of rates must be of one length, got {grids}")

    def rates(self, method: str) -> tuple[float, ...]:
        """Those that a method is tuned over."""
        if method in CONTROLS.values():
            return self.control_rates
        return self.fine_rates if method == NP_MERGE else self.coarse_rates


@dataclass(frozen=True)
class Sizes:
    """Shares and numbers of examples. What is held for tests is the same for every seed.

    Attributes:
        learning: share of the groups that are not for testing, for statistics and learned merges.
        validation: share, for every choice.
        cell: examples at most of a cell's part for training.
        validation_cell: examples at most of its parts for learning and for choices.
        test: examples at most of any cell for tests.
        base: examples at most that the base is trained on.
    """

    learning: float = 0.15
    validation: float = 0.2
    cell: int = 400
    validation_cell: int = 400
    test: int = 400
    base: int = 20_000

    @property
    def limits(self) -> tuple[int, int, int]:
        """Examples at most of the parts of a cell: for training, for learning, for choices."""
        return self.cell, self.validation_cell, self.validation_cell


SIZES, LEARNING, TRAINING, FINE_TUNING = Sizes(), Learning(), Regime(steps=1500, batch=64), Regime(rate=3e-4, steps=200)


@dataclass(frozen=True)
class Task:
    """A grid on some data, and the networks on it.

    Attributes:
        name: in the rows.
        setting: which kind of program makes it: classes of images, classes of sentences, images that are made.
        data: the set: "pacs", "emoji", "digits" or "mnist" for images, "xnli", "manuals" or "made" for sentences.
        base_domain: the domain that the base is trained on, which is none of the grid's.
        width: of the network.
        layers: of the network.
        patch: height and width of the patches that a classifier of images sees.
        sizes: of the data.
        base: training of the base.
        fine_tuning: training of each expert.
        methods: that are run.
        curves: methods that merge fewer of the networks, too.
        numbers: of networks in these, all of them besides; None is every number from two.
        orders: of the networks in these.
        curve_values: of each hyper-parameter that are tried for each subset; None is all.
        learning: budget of learned merges and their controls.
        values: of each hyper-parameter that are tried; None is all.
        side: height and width of images that are made.
        rank: of the adapters that these networks are fine-tuned by.
        classifier: training of what judges them.
        samples: images that are made in each cell.
        sampling: steps of making them.
        vocabulary: tokens of sentences.
        length: tokens of an example.
    """

    name: str
    setting: Literal["images", "text", "generation"]
    data: str
    base_domain: str
    width: int = 48
    layers: int = 2
    patch: int = 4
    sizes: Sizes = SIZES
    base: Regime = TRAINING
    fine_tuning: Regime = FINE_TUNING
    methods: tuple[str, ...] = METHODS
    curves: tuple[str, ...] = CURVES
    numbers: tuple[int, ...] | None = (2, 3, 5)
    orders: int = 3
    curve_values: int | None = 4
    learning: Learning = LEARNING
    values: int | None = None
    side: int = 16
    rank: int = 4
    classifier: Regime = TRAINING
    samples: int = 48
    sampling: int = 12
    vocabulary: int = 2000
    length: int = 48


@dataclass(frozen=True)
class Settings:
    """How much work a run does."""

    tasks: tuple[Task, ...]

    def task(self, name: str) -> Task:
        """By its name."""
        return next(task for task in self.tasks if task.name == name)


def made_with(settings: Settings) -> dict[str, Any]:
    """What decides every number of a run but its seed."""
    return dataclasses.asdict(settings)
