"""The configuration of a LoRA adapter as PEFT writes it: which modules it is for, and by what its updates are multiplied."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npmerge.checkpoint.errors import CheckpointError, short
from npmerge.checkpoint.indices import read_object
from npmerge.checkpoint.patterns import Patterns

CONFIG = "adapter_config.json"
LARGEST = 2**24
"""Bytes that a configuration may take."""

REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA, whose magnitudes are no sum",
    "lora_bias": "biases of lora_B",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA, which depends on the tokens",
    "arrow_config": "Arrow routing, which depends on the inputs",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "layers that are repeated",
    "trainable_token_indices": "single rows of embeddings",
    "target_parameters": "parameters that are no module's weight",
}
"""Keys of a configuration that ask for more than a sum of low rank, and what they ask for."""

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to initialise, by their beginnings, after which the adapter is for a base with other weights."""


@dataclass(frozen=True)
class LoraConfig:
    """What decides on the update of each module.

    Attributes:
        path: of the file.
        patterns: what matches its regular expressions.
        r: the rank of modules that no pattern names.
        alpha: likewise.
        rslora: whether alpha is divided by the root of the rank.
        fan_in_fan_out: whether weights are stored as (in, out).
        targets: names of modules, or one regular expression; empty for all that have tensors.
        ranks: ranks by pattern.
        alphas: alphas by pattern.
        base: what the adapter's base is called.
    """

    path: Path
    patterns: Patterns
    r: int
    alpha: float
    rslora: bool = False
    fan_in_fan_out: bool = False
    targets: str | tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    base: str = ""

    def rank(self, module: str) -> int:
        """Of a module's update."""
        return self._found(self.ranks, module, self.r)

    def scale(self, module: str) -> float:
        """By which B A is multiplied: alpha / r, or alpha / sqrt(r) (Kalajdzievski 2023)."""
        rank, alpha = self.rank(module), self._found(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def is_target(self, module: str) -> bool:
        """Whether PEFT puts an adapter at the module: a text is matched as a whole, a list against the ends of names."""
        if not self.targets or self.targets == "all-linear":
            return True
        if isinstance(self.targets, str):
            return self.patterns.match(rf"(?:{self.targets})\Z", module)
        return any(module == x or module.endswith(f".{x}") for x in self.targets)

    def _found(self, values: Mapping[str, Any], module: str, otherwise: Any) -> Any:
        """The value of the first pattern that matches an end of the name which begins it or follows a dot, as in PEFT."""
        return next((x for pattern, x in values.items() if self.patterns.match(rf"(.*\.)?({pattern})$", module)), otherwise)


def read_config(folder: Path) -> LoraConfig:
    """The configuration of the adapter in a folder.

    Raises:
        CheckpointError: no such file, one that is damaged, or an adapter of a kind that is not applied here (which one).
    """
    path = folder / CONFIG
    raw = read_object(path, LARGEST)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(path, f"is of the kind {short(kind)}: only LoRA (peft_type 'LORA') is applied")
    for key, what in REFUSED.items():
        if raw.get(key):
            raise CheckpointError(path, f"asks for {what}, which is not applied: merge it with PEFT first", key)
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise CheckpointError(
            path, f"is {short(start)}, for a base with other weights: convert it with PEFT", "init_lora_weights"
        )
    patterns = Patterns(path)
    return LoraConfig(
        path,
        patterns,
        _number(path, "r", raw.get("r"), whole=True),
        _number(path, "lora_alpha", raw.get("lora_alpha")),
        _flag(path, raw, "use_rslora"),
        _flag(path, raw, "fan_in_fan_out"),
        _targets(patterns, raw.get("target_modules")),
        _by_pattern(patterns, raw, "rank_pattern", whole=True),
        _by_pattern(patterns, raw, "alpha_pattern"),
        str(raw.get("base_model_name_or_path") or ""),
    )


def _number(path: Path, key: str, value: Any, *, whole: bool = False) -> Any:
    kinds = (int,) if whole else (int, float)
    fits = type(value) in kinds and -(2**31) < value < 2**31
    if not fits or (whole and value <= 0):
        raise CheckpointError(path, f"is {short(value)}, expected a {'rank of 1 or more' if whole else 'finite number'}", key)
    return value


def _flag(path: Path, raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key) or False
    if not isinstance(value, bool):
        raise CheckpointError(path, f"is {short(value)}, expected true or false", key)
    return value


def _targets(patterns: Patterns, value: Any) -> str | tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(x, str) for x in value):
        return tuple(value)
    if value is None:
        return ()
    if not isinstance(value, str):
        raise CheckpointError(
            patterns.path, f"is {short(value)}, expected a list of names or a regular expression", "target_modules"
        )
    patterns.check("target_modules", value)
    return value


def _by_pattern(patterns: Patterns, raw: Mapping[str, Any], key: str, *, whole: bool = False) -> dict[str, Any]:
    found = raw.get(key) or {}
    if not isinstance(found, dict):
        raise CheckpointError(patterns.path, f"is {short(found)}, expected an object of patterns", key)
    for pattern, value in found.items():
        patterns.check(key, pattern)
        _number(patterns.path, key, value, whole=whole)
    return found
