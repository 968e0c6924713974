"""What the experiment on overtrained experts does: tasks, networks, moments of training, and the names in its rows."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from experiments.run import Preset
from npmerge.models import Gpt2, Mlp, Vit
from npmerge.models.build import Config

FULL, LORA = "full", "LoRA"
TRAININGS = (FULL, LORA)
PLATEAU = "plateau"
"""In the place of a number of steps: experts that stopped where the rule said so, each for itself."""

BASE, EXPERTS, ENSEMBLE = "base", "experts, each on its own task", "ensemble of logits"
AVERAGE, ARITHMETIC, TIES, DARE, REGMEAN = "average", "task arithmetic", "TIES", "DARE", "RegMean"
LEARNED, CONTROL = "NP Merge", "control: average fine-tuned"
MIXTURE, EVEN = "mixture with a learned router", "mixture, all experts alike"

LEVELS = (BASE, EXPERTS, ENSEMBLE)
CLOSED = (AVERAGE, ARITHMETIC, TIES, DARE, REGMEAN)
MERGES = (*CLOSED, LEARNED)
MIXTURES = (EVEN, MIXTURE)
METHODS = (*LEVELS, *CLOSED, LEARNED, CONTROL, *MIXTURES)

KEY = ("seed", "setup", "training", "steps", "method")
"""The columns that say which row it is."""


@dataclass(frozen=True)
class Sizes:
    """How many examples each part has, of each task but for the base.

    Attributes:
        base: for the network that all experts start from.
        train: for an expert.
        learning: for statistics, coefficients, routers and the control; no expert sees them.
        selection: for every choice, and for the rule that stops early.
        test: that judge.
    """

    base: int
    train: int
    learning: int
    selection: int
    test: int


@dataclass(frozen=True)
class Setup:
    """A base and its experts.

    Attributes:
        name: in the rows.
        data: "mnist" or "digits", whose images are changed in the ways of `tasks.VIEWS`; "text" for strings of several
            languages.
        network: as pages tell it.
        config: the architecture.
        sizes: of the parts.
        adapted: which matrices an adapter has, a regular expression.
        blocks: which leaves are a block of the mixture, as `npmerge.route` takes it.
        base_steps: of the base.
        rate: of Adam, of base and experts.
        adapter_rate: of Adam, of adapters.
        per: for whom a router weighs experts, as of `npmerge.Router`.
    """

    name: str
    data: str
    network: str
    config: Config
    sizes: Sizes
    adapted: str = r"feed_forward/.*kernel"
    blocks: str = r"blocks/(\d+)/feed_forward/"
    base_steps: int = 400
    rate: float = 1e-3
    adapter_rate: float = 3e-3


@dataclass(frozen=True)
class Settings:
    """How much work a run does.

    Attributes:
        setups: bases and experts.
        moments: steps of expert training after which experts are merged; the last is the whole training, one an eighth of it.
        scored: the moment at which EL2N is measured, of experts that are trained for it.
        groups: of examples by difficulty, of one size.
        rank: of adapters.
        batch: examples of a step.
        judged: steps of expert training between two judgements of the rule that stops early.
        patience: judgements without a new best before it cuts the rate, and before it stops.
        steps: of Adam, of learned merges, routers and the control.
        scales: of task vectors, of which selection data choose.
        shrinks: what RegMean multiplies off-diagonal elements by, likewise.
        learned_rates: of Adam for coefficients.
        control_rates: for weights; as many.
        router_rates: for routers; as many.
        further: rates and scales at most that are tried beyond an end of a grid, while the best one lies there.
    """

    setups: tuple[Setup, ...]
    moments: tuple[int, ...] = (4, 32, 128, 512, 1024)
    scored: int = 32
    groups: int = 5
    rank: int = 4
    batch: int = 32
    judged: int = 16
    patience: int = 3
    steps: int = 200
    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5)
    shrinks: tuple[float, ...] = (0.1, 0.5, 0.9)
    learned_rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    control_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    router_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    further: int = 2


def made_with(settings: Settings, names: dict[str, str]) -> dict[str, Any]:
    """What decides every number of a run but its seed; `names` says what was found of each data set."""
    setups = [dataclasses.asdict(x) | {"architecture": type(x.config).__name__} for x in settings.setups]
    return {**dataclasses.asdict(settings), "setups": setups, "data": names}


PRESETS = {
    Preset.test: Settings(
        (
            Setup("images", "digits", "perceptron", Mlp(64, (12, 12), 10), Sizes(200, 80, 40, 60, 60), r"layers/\d+/kernel",
                  r"layers/(1)/", base_steps=40, rate=1e-2, adapter_rate=1e-2),
        ),
        moments=(4, 16), scored=4, groups=2, rank=2, batch=20, judged=4, patience=1, steps=4, scales=(1.0,), shrinks=(0.5,),
        learned_rates=(0.1,), control_rates=(1e-3,), router_rates=(1e-2,),
    ),
    Preset.cpu: Settings((
        Setup("images", "mnist", "ViT of width 48", Vit(7, 48, 3, 4, 96, 10, 28, 1), Sizes(8000, 600, 200, 500, 2000),
              base_steps=1500),
        Setup("text", "text", "GPT of width 64", Gpt2(vocabulary=160, width=64, layers=2, heads=4, hidden=128, length=32),
              Sizes(2000, 300, 60, 120, 200)),
    )),
    Preset.paper: Settings(
        (
            Setup("images", "mnist", "ViT of width 192", Vit(4, 192, 12, 3, 768, 10, 28, 1),
                  Sizes(15_000, 8_000, 1_000, 1_000, 10_000), base_steps=10_000, rate=3e-4, adapter_rate=1e-3),
            Setup("text", "text", "GPT of width 384",
                  Gpt2(vocabulary=160, width=384, layers=6, heads=6, hidden=1536, length=64),
                  Sizes(5000, 200, 40, 60, 100), base_steps=10_000, rate=3e-4, adapter_rate=1e-3),
        ),
        moments=(4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384), scored=32, rank=16, batch=128, judged=64,
        steps=500, scales=(0.2, 0.4, 0.6, 0.8, 1.0, 1.5),
    ),
}  # fmt: skip
