"""Configurations of the merged model: the reference's, with only those values changed that the merge has changed."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from npmerge.folder.stacks import find, restacked
from npmerge.recipe.plan import Plan

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def changed_config(plan: Plan, old_rows: int | None = None, new_rows: int | None = None) -> dict[str, Any]:
    """`config.json` of the merged model; empty where the reference has none.

    Number of layers, lists with one entry a layer, dtype and number of tokens follow what is written. Only keys that exist are
    changed, in nested configurations too.

    Args:
        plan: of the merge.
        old_rows: of the reference's tables of tokens.
        new_rows: of those of the result; None if they stay.
    """
    config = json.loads(json.dumps(dict(plan.reference.config)))
    config = restacked(config, plan)
    return _each(_each(config, _dtype(plan)), _rows(old_rows, new_rows))


Change = Callable[[str, Any], Any]


def _each(config: dict[str, Any], change: Change) -> dict[str, Any]:
    return {k: _each(v, change) if isinstance(v, dict) else change(k, v) for k, v in config.items()}


def _rows(old: int | None, new: int | None) -> Change:
    def change(key: str, value: Any) -> Any:
        return new if key == "vocab_size" and value == old and new is not None else value

    return change


def _dtype(plan: Plan) -> Change:
    """What most entries are written in; where that is what the reference has, its configuration is believed."""
    before = _most((entry.dtype, entry.size) for entry in plan.reference.entries.values())
    after = _most((step.dtype, step.entry.size) for step in plan.steps)
    if before == after or after not in DTYPES:
        return lambda key, value: value
    return lambda key, value: DTYPES[after] if key in ("torch_dtype", "dtype") and value in DTYPES.values() else value


def _most(dtypes: Iterable[tuple[str, int]]) -> str:
    sizes: Counter[str] = Counter()
    for dtype, size in dtypes:
        sizes[dtype] += size
    return max(sizes, key=sizes.__getitem__, default="")


def rows_of_config(config: Mapping[str, Any]) -> int | None:
    """`vocab_size`, of the outermost configuration that has one."""
    found = find(config, "vocab_size")
    return found if isinstance(found, int) else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as Hugging Face's folders have it: indented by two, characters as they are."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
