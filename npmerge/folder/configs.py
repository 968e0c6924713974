"""Configurations of the merged model: the reference's, with only those values changed that the merge has changed."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from npmerge.recipe.plan import Plan

LAYER_COUNT = re.compile(r"(num_.*layers|n_layers?|depth)$")
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def changed_config(plan: Plan, old_rows: int | None = None, new_rows: int | None = None) -> dict[str, Any]:
    """`config.json` of the merged model; empty where the reference has none.

    Number of layers, lists with one entry a layer, dtype and number of tokens follow what is written. Only keys that exist are
    changed, in nested configurations too.

    Args:
        plan: of the merge.
        old_rows: of the reference's tables of tokens.
        new_rows: of those of the result; None if they stay.
    """
    config = json.loads(json.dumps(dict(plan.models[plan.reference].config)))
    for change in (_layers(plan), _dtype(plan), _rows(old_rows, new_rows)):
        config = _each(config, change)
    return config


Change = Callable[[str, Any], Any]


def _each(config: dict[str, Any], change: Change) -> dict[str, Any]:
    return {k: _each(v, change) if isinstance(v, dict) else change(k, v) for k, v in config.items()}


def _rows(old: int | None, new: int | None) -> Change:
    def change(key: str, value: Any) -> Any:
        return new if key == "vocab_size" and value == old and new is not None else value

    return change


def _dtype(plan: Plan) -> Change:
    before = _most((entry.dtype, entry.size) for entry in plan.models[plan.reference].entries.values())
    after = _most((step.dtype, math.prod(step.shape)) for step in plan.steps)
    if before == after or after not in DTYPES:
        return lambda key, value: value
    return lambda key, value: DTYPES[after] if key in ("torch_dtype", "dtype") and value in DTYPES.values() else value


def _most(dtypes: Iterable[tuple[str, int]]) -> str:
    sizes: Counter[str] = Counter()
    for dtype, size in dtypes:
        sizes[dtype] += size
    return max(sizes, key=sizes.__getitem__, default="")


def _layers(plan: Plan) -> Change:
    """Counts of layers and lists of one value a layer, of stacks of layers whose number has changed."""
    before, after = _stacks(plan.models[plan.reference].entries), _stacks(step.name for step in plan.steps)
    moved = {stack for stack in before if stack in after and _origins(plan, stack) != _unmoved(plan, before[stack])}
    counts = {before[stack]: after[stack] for stack in moved}

    def change(key: str, value: Any) -> Any:
        if LAYER_COUNT.search(key) and isinstance(value, int) and value in counts:
            return counts[value]
        if isinstance(value, list) and len(value) in counts and "layer" in key:
            return next(_restacked(plan, stack, key) or value for stack in moved if before[stack] == len(value))
        return value

    return change


def _stacks(names: Iterable[str]) -> dict[str, int]:
    """How many layers there are below each prefix."""
    found: dict[str, set[int]] = {}
    for name in names:
        if match := LAYER.search(name):
            found.setdefault(name[: match.start(1)], set()).add(int(match[1]))
    return {stack: len(numbers) for stack, numbers in found.items()}


def _unmoved(plan: Plan, count: int) -> list[tuple[int, int]]:
    return [(plan.reference, k) for k in range(count)]


def _origins(plan: Plan, stack: str) -> list[tuple[int, int]]:
    """For each layer of the result the model and the layer that its first tensor is read of."""
    found: dict[int, tuple[int, int]] = {}
    for step in plan.steps:
        match = LAYER.search(step.name)
        if match and step.name[: match.start(1)] == stack:
            source = step.base or step.sources[0]
            from_layer = LAYER.search(source.name)
            origin = (source.model, int(from_layer[1])) if from_layer else (plan.reference, int(match[1]))
            found.setdefault(int(match[1]), origin)
    return [found[k] for k in sorted(found)]


def _restacked(plan: Plan, stack: str, key: str) -> list[Any]:
    """A list of one value a layer, put together from the configurations that the layers come from; empty if one lacks it."""
    values = []
    for model, layer in _origins(plan, stack):
        per_layer = _find(plan.models[model].config, key)
        if not isinstance(per_layer, list) or layer >= len(per_layer):
            return []
        values.append(per_layer[layer])
    return values


def _find(config: Mapping[str, Any], key: str) -> Any:
    if key in config:
        return config[key]
    nested = (_find(v, key) for v in config.values() if isinstance(v, dict))
    return next((v for v in nested if v is not None), None)


def rows_of_config(config: Mapping[str, Any]) -> int | None:
    """`vocab_size`, of the outermost configuration that has one."""
    found = _find(config, "vocab_size")
    return found if isinstance(found, int) else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as Hugging Face's folders have it: indented by two, characters as they are."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError with its path if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
