"""What the experiment on features does: sizes, trainings, and the names in its rows."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.run import Preset
from experiments.text import Text

ENGLISH, PYTHON, PLAYS, LUA = "English", "Python", "plays", "Lua"
TEXTS = (ENGLISH, PYTHON, PLAYS, LUA)
OF_BASE, OF_PARENTS = (ENGLISH, PYTHON), (PLAYS, LUA)

BASE, STORIES, CODER = "base", "fine-tuned to plays", "fine-tuned to Lua"
PARENTS = (STORIES, CODER)
SLERP, TASK, TIES, NP, CONTROL = "SLERP", "task arithmetic", "TIES", "NP Merge", "control: average fine-tuned"
MERGES = (SLERP, TASK, TIES, NP, CONTROL)
NETWORKS = (BASE, *PARENTS, *MERGES)
AGAIN = "second autoencoder"
"""What is added to the name of a network whose features are compared with themselves."""


@dataclass(frozen=True)
class Autoencoder:
    """How features are found.

    Attributes:
        expansion: features for each unit.
        l1: weight of the sum of activations, where units are scaled to a mean squared norm of their number.
        rate: of Adam.
        steps: of it.
        batch: tokens of a step.
        chunks: parts of the training; between them features that were dead in all of the part before start anew.
        tokens: that are learned from.
    """

    expansion: int = 4
    l1: float = 3.0
    rate: float = 3e-3
    steps: int = 2000
    batch: int = 1024
    chunks: int = 6
    tokens: int = 65_536


@dataclass(frozen=True)
class Settings:
    """How much work a run does. Both grids of rates are of one length: the learned merge and its control are tuned alike.

    Attributes:
        width: of the stream.
        hidden: units of the feed-forward network.
        heads: of queries.
        kv_heads: of keys and values.
        length: characters of a window.
        batch: windows of a step.
        characters: of each text at most.
        packaged: whether plays and Lua are replaced by other modules of Python.
        base_steps: of training.
        base_rate: of Adam.
        tuned_steps: of each fine-tune.
        tuned_rate: of Adam.
        merges: of both fine-tunes.
        ts: of SLERP that are tried, 0 being the network fine-tuned to Lua.
        t: the published one, whose merge has an autoencoder.
        scales: of task arithmetic and TIES, chosen on validation data.
        learning_steps: of NP Merge and its control.
        merge_rates: of Adam, for coefficients.
        weight_rates: for all weights.
        autoencoder: how features are found.
        threshold: of the correlation of two features that are the same.
        fires: how often a feature must be active to count.
        compared: tokens that features are compared at.
        judged: windows of validation and of test data of each text.
        shown: features of each network and group on the page of features.
        contexts: of each of them.
    """

    width: int = 64
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    length: int = 64
    batch: int = 32
    characters: int = 600_000
    packaged: bool = False
    base_steps: int = 3000
    base_rate: float = 3e-3
    tuned_steps: int = 800
    tuned_rate: float = 5e-4
    merges: tuple[str, ...] = MERGES
    ts: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.58, 0.7, 0.8, 0.9, 1.0)
    t: float = 0.58
    scales: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
    learning_steps: int = 300
    merge_rates: tuple[float, ...] = (1e-1, 3e-1, 1.0)
    weight_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    autoencoder: Autoencoder = Autoencoder()
    threshold: float = 0.8
    fires: int = 10
    compared: int = 16_384
    judged: int = 128
    shown: int = 6
    contexts: int = 4


def made_with(settings: Settings, texts: Mapping[str, Text]) -> dict[str, Any]:
    """What decides every number of a run but its seed."""
    return dataclasses.asdict(settings) | {"texts": {name: text.sha256 for name, text in texts.items()}}


PRESETS = {
    Preset.test: Settings(
        width=8, hidden=16, heads=2, kv_heads=1, length=16, batch=8, characters=8_000, packaged=True, base_steps=30,
        base_rate=1e-2, tuned_steps=10, tuned_rate=1e-2, merges=(SLERP, TASK, NP, CONTROL), ts=(0.0, 0.58, 1.0),
        scales=(0.5,), learning_steps=4, merge_rates=(1e-1,), weight_rates=(1e-3,),
        autoencoder=Autoencoder(expansion=2, l1=0.1, steps=60, batch=64, chunks=2, tokens=512),
        compared=512, judged=16, shown=2, contexts=2,
    ),
    Preset.cpu: Settings(),
    Preset.paper: Settings(
        width=512, hidden=1024, heads=16, kv_heads=8, length=256, batch=64, characters=10**9, base_steps=200_000,
        base_rate=6e-4, tuned_steps=20_000, tuned_rate=2e-5, learning_steps=2_000,
        autoencoder=Autoencoder(expansion=16, rate=1e-4, steps=100_000, batch=4096, chunks=10, tokens=4_000_000),
        compared=1_000_000, judged=1024,
    ),
}  # fmt: skip
