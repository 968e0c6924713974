"""How much work `experiments.closed_forms` does, and what its rows are called."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import npmerge as nm
from experiments.run import Preset

PUBLISHED: Mapping[str, tuple[Callable[[], nm.Learned], nm.Objective]] = {
    "NP Merge": (nm.np_merge, nm.CrossEntropy()),
    "AdaMerging, task-wise": (functools.partial(nm.ada_merging, layer_wise=False), nm.Entropy()),
    "AdaMerging, layer-wise": (nm.ada_merging, nm.Entropy()),
    "AdaMerging++, layer-wise": (functools.partial(nm.ada_merging, plus_plus=True), nm.Entropy()),
    "DAM": (nm.dam, nm.Distillation(2.0)),
}
"""Published learned merges, and what each of them minimises."""


@dataclass(frozen=True)
class Settings:
    """How much work a run does. Grids of rates are of one length: learned merges and controls are tuned alike."""

    hidden: tuple[int, ...] = (64, 64)  # of the network for digits
    blocks: int = 1  # of the network for photographs
    width: int = 16
    base: int = 40  # images: for training the base, for learning from a merge, for selection
    learning: int = 100
    selection: int = 300
    batch: int = 64
    training_rate: float = 1e-3
    base_steps: int = 150
    task_steps: int = 100
    learning_steps: int = 200
    learned_rates: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    control_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    granularities: tuple[str, ...] = ("PerModel", "PerTensor", "PerChannel", "PerParameter")
    methods: tuple[str, ...] = tuple(method.__name__ for method in nm.METHODS)
    published: tuple[str, ...] = tuple(PUBLISHED)
    values: int | None = None  # of each hyper-parameter that are tried


PRESETS = {
    Preset.test: Settings(
        hidden=(8,), width=2, selection=40, learning=40, batch=16, base_steps=10, task_steps=10, learning_steps=2,
        learned_rates=(1e-2,), control_rates=(1e-3,), granularities=("PerTensor", "PerParameter"),
        methods=("Average", "Fisher", "IsoC"), published=("AdaMerging, layer-wise",), values=2,
    ),
    Preset.cpu: Settings(),
    Preset.paper: Settings(
        blocks=3, width=32, learning=300, selection=600, batch=128, base_steps=2000, task_steps=2000,
    ),
}  # fmt: skip

BASE, MODELS, OWN, ENSEMBLE, MULTI = "base", "fine-tunes", "fine-tunes, own task", "ensemble of logits", "multi-task"
UNMERGED = "base, fine-tuned as the control"
REFERENCES = (BASE, UNMERGED, MODELS, ENSEMBLE, OWN, MULTI)
CLOSED, PER_TASK, TUNED, LEARNED = "closed form", "a network per task", "all weights", "learned as published"
CONTROL = ("Average", TUNED)
COSTS = ("merge_flops", "statistics_flops", "bytes", "peak_bytes", "merge_seconds", "uncounted")
CHOICES: dict[str, Any] = {"validation": "", "chosen": [], "learnable": [], "tried": 0, "rate": "", "kept": ""}
EMPTY: dict[str, Any] = {**CHOICES, **dict.fromkeys(COSTS, ""), "error": ""}
"""What a row holds besides measures, where it has no such thing."""


def made_with(settings: Settings, tasks: str) -> dict[str, Any]:
    """What decides every number of a run but its seed."""
    return dataclasses.asdict(settings) | {"data": tasks}
