"""What the experiment on compatible specialisation does: sizes, trainings, and the names in its rows."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.run import Preset
from experiments.text import Text

PROSE, CODE = "docstrings", "code"
EXPERTS = (PROSE, CODE)
"""What the two experts are fine-tuned on."""

DOCUMENTED, SOURCE = "code with docstrings", "source with comments"
"""What needs both of them."""

BASE, BEST, AVERAGE, SLERP = "base", "expert that validation chooses", "weight average", "SLERP"
WEIGHTS, FEATURES, OUTPUTS = "weights interpolated", "feature averaging", "outputs averaged"
SWEPT = (WEIGHTS, FEATURES, OUTPUTS)
"""Ways of which the share of the experts is chosen on validation data."""

EQUAL_FEATURES, EQUAL_OUTPUTS = "feature averaging, equal shares", "outputs averaged, equal shares"
SINGLE, ALIGNED = "single router", "routing, aligned pool"
LAYERS, NP = "learned coefficients by layer", "NP Merge"
BOTH = "one network, both domains"
"""The base after twice the steps of an expert, half of each batch from either domain."""

TUNED_AVERAGE, TUNED_BASE = "control: average fine-tuned", "control: base fine-tuned"


def routing(layers: int) -> str:
    """The name of routing over the experts of so many layers."""
    return f"routing over {layers} layer{'s' * (layers > 1)}"


ROUTED = (SINGLE, *map(routing, (1, 2, 3, 4)), ALIGNED)
MERGED = (LAYERS, NP)
CONTROLS = (TUNED_AVERAGE, TUNED_BASE)
LEVELS = (BASE, *(f"expert: {name}" for name in EXPERTS), BEST, BOTH)
CLOSED = (AVERAGE, SLERP, WEIGHTS, EQUAL_FEATURES, FEATURES, EQUAL_OUTPUTS, OUTPUTS)
WAYS = (*LEVELS, *CLOSED, *ROUTED, *MERGED, *CONTROLS)

KEY = ("seed", "target", "steps", "way")
"""The columns that say which row it is."""


@dataclass(frozen=True)
class Settings:
    """How much work a run does. All grids of rates are of one length: everything that is learned is tuned alike.

    Attributes:
        layers: blocks of the network.
        heads: of attention.
        width: of the stream; the feed-forward networks are four times as wide.
        length: characters of a window.
        batch: windows of a step.
        characters: of each domain and target at most.
        plays: whether half of the base's text is Tiny Shakespeare.
        base_steps: of its training.
        base_rate: of Adam, falling along a cosine.
        expert_rate: of AdamW, for the feed-forward networks alone.
        checkpoints: steps of fine-tuning after which experts are merged.
        targets: what they are merged for.
        ways: of merging.
        fractions: shares of the second expert that are tried.
        learning_steps: of everything that is learned on a target.
        router_rates: of Adam.
        merge_rates: for coefficients.
        weight_rates: for all weights, the controls.
        further: rates at most that are tried beyond an end of a grid, while the best one lies there.
        judged: windows of validation data.
        tested: windows of test data.
    """

    layers: int = 4
    heads: int = 4
    width: int = 64
    length: int = 64
    batch: int = 16
    characters: int = 600_000
    plays: bool = True
    base_steps: int = 2500
    base_rate: float = 2e-3
    expert_rate: float = 1e-3
    checkpoints: tuple[int, ...] = (50, 250, 1250)
    targets: tuple[str, ...] = (DOCUMENTED, SOURCE)
    ways: tuple[str, ...] = WAYS
    fractions: tuple[float, ...] = tuple(k / 10 for k in range(11))
    learning_steps: int = 100
    router_rates: tuple[float, ...] = (1e-2, 3e-2, 1e-1)
    merge_rates: tuple[float, ...] = (1e-1, 3e-1, 1.0)
    weight_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    further: int = 2
    judged: int = 128
    tested: int = 384


def made_with(settings: Settings, texts: Mapping[str, Text]) -> dict[str, Any]:
    """What decides every number of a run but its seed."""
    return dataclasses.asdict(settings) | {"texts": {name: text.sha256 for name, text in texts.items()}}


PRESETS = {
    Preset.test: Settings(
        layers=1, heads=2, width=8, length=16, batch=8, characters=8_000, plays=False, base_steps=20, base_rate=1e-2,
        expert_rate=1e-2, checkpoints=(2, 6), targets=(DOCUMENTED,), fractions=(0.0, 0.5, 1.0), learning_steps=4,
        ways=(*LEVELS, AVERAGE, FEATURES, OUTPUTS, routing(1), ALIGNED, TUNED_AVERAGE), router_rates=(1e-2,),
        weight_rates=(1e-3,), judged=16, tested=16,
    ),
    Preset.cpu: Settings(),
    Preset.paper: Settings(
        layers=12, heads=12, width=768, length=1024, batch=128, characters=10**9, base_steps=100_000, base_rate=6e-4,
        expert_rate=8e-4, checkpoints=(500, 1000, 2000, 4000, 8000), learning_steps=1700, router_rates=(5e-3, 1e-2, 3e-2),
        judged=256, tested=1024,
    ),
}  # fmt: skip
