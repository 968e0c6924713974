"""What adapters hold as it is, beside factors: modules whole (PEFT's `modules_to_save`) and biases (its `bias`)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from npmerge.checkpoint.adapted import prefix_of
from npmerge.checkpoint.adapter import Adapter
from npmerge.checkpoint.dtypes import FLOATS
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.formats import open_checkpoint
from npmerge.checkpoint.stored import Entry
from npmerge.reports.numbers import size
from npmerge.reports.text import braced, kind_of


def module_of(name: str) -> str:
    """The module that a tensor is of: PEFT stores it whole if one of its tensors has to be."""
    return name.rpartition(".")[0]


def is_matrix(entry: Entry) -> bool:
    """Whether a tensor's change has factors: a weight of two axes or more, in floating point."""
    return 2 <= len(entry.shape) <= 5 and entry.size > 0 and entry.name.endswith(".weight") and entry.dtype in FLOATS


def is_bias(entry: Entry, entries: Mapping[str, Entry]) -> bool:
    """Whether a tensor is the bias of a module whose weight is a matrix: PEFT keeps it beside the factors."""
    weight = entries.get(f"{module_of(entry.name)}.weight")
    return entry.name.endswith(".bias") and len(entry.shape) == 1 and weight is not None and is_matrix(weight)


def saved_modules(names: Iterable[str]) -> tuple[str, ...]:
    """Of tensors that an adapter holds as they are: the modules of those that are more than a bias."""
    return tuple(sorted({module_of(name) for name in names if not name.endswith(".bias")}))


def as_written(tensors: Mapping[str, np.ndarray], ranks: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Tensors under the names that PEFT has for them: what an adapted module had before is its base layer."""
    found = {}
    for name, x in tensors.items():
        module, _, last = name.rpartition(".")
        found[f"{module}.base_layer.{last}" if module in ranks else name] = x
    return found


def bias_kind(biases: Iterable[str], ranks: Mapping[str, int]) -> str:
    """PEFT's `bias`: none, only of modules with factors, or all."""
    modules = set(map(module_of, biases))
    return "none" if not modules else "lora_only" if modules <= set(ranks) else "all"


def summed(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, np.ndarray]:
    """What adapters hold as it is, summed as their updates are: base + sum of weight * (tensor - base), in float32.

    Where the weights of those that hold a tensor add up to one, its base is not asked for. Integers are the first adapter's.

    Raises:
        ValueError: a module that is whole in one adapter and has factors in another, shapes that differ, or a base that is
            needed and not where the configuration says.
    """
    return {name: _summed(adapters, weights, name) for name in sorted({name for a in adapters for name in a.replaced})}


def _summed(adapters: Sequence[Adapter], weights: Sequence[float], name: str) -> np.ndarray:
    own = [(a, w) for a, w in zip(adapters, weights, strict=True) if name in a.replaced]
    first = own[0][0]
    if not name.endswith(".bias") and (other := next((a for a in adapters if module_of(name) in a.pairs), None)):
        raise CheckpointError(first.path, f"is stored whole, and as factors in {other.path}: merge models", name)
    for adapter, _ in own:
        if (got := adapter.shape(adapter.replaced[name])) != (expected := first.shape(first.replaced[name])):
            raise ValueError(f"{name!r} has the shape {expected} in {first.path}, {got} in {adapter.path}")
    if first.stored.entries[first.replaced[name]].dtype not in FLOATS:
        return first.stored.read(first.replaced[name])
    total = sum(np.float32(w) * np.asarray(a.stored.read(a.replaced[name]), np.float32) for a, w in own)
    rest = 1 - sum(w for _, w in own)
    if abs(rest) > 1e-6:
        total = total + np.float32(rest) * _of_base(adapters, first, name)
    return np.asarray(total, np.float32).reshape(first.shape(first.replaced[name]))


def _of_base(adapters: Sequence[Adapter], first: Adapter, name: str) -> np.ndarray:
    """The tensor of the base, as the first adapter that names one has its path."""
    base = base_of(adapters)
    if not base or not Path(base).exists():
        raise CheckpointError(
            first.path,
            "is stored as it is: unless the weights of the adapters that hold it add up to 1, their sum needs the base; "
            f"base_model_name_or_path is {base!r}, no file or folder here: write its path there",
            name,
        )
    stored = open_checkpoint(base)
    return np.asarray(stored.read(name.removeprefix(prefix_of(stored, first))), np.float32)


def base_of(adapters: Sequence[Adapter]) -> str:
    """What the first adapter that says so is an adapter of; empty if none says."""
    return next((name for adapter in adapters if (name := adapter.config.base)), "")


def why_whole(whole: Sequence[str], biases: Sequence[str], order: Sequence[str]) -> list[str]:
    """Lines on what is stored as it is: modules in which more changed than factors and a bias hold, and biases."""
    changed: dict[str, list[str]] = {}
    for name in sorted(whole, key=order.index):
        changed.setdefault(module_of(name), []).append(name.rpartition(".")[2])
    found: dict[tuple[str, str], list[str]] = {}
    for module, names in changed.items():
        found.setdefault((kind_of(module), " and ".join(names)), []).append(module)
    lines = [
        f"stored whole (modules_to_save): {braced(modules)}, whose {names} changed, no matrix for LoRA"
        for (_, names), modules in found.items()
    ]
    kinds: dict[str, list[str]] = {}
    for name in sorted(biases, key=order.index):
        kinds.setdefault(kind_of(name), []).append(name)
    return lines + [f"biases as they are (bias): {braced(names)}" for names in kinds.values()]


def sizes(adapter: int, model: int, whole: int) -> list[str]:
    """How large an adapter is, and a warning if little of it is of low rank."""
    part = f"; {size(whole)} of it are modules stored whole" if whole else ""
    lines = [f"the adapter takes {size(adapter)}, {adapter / model:.0%} of the {size(model)} of the model{part}"]
    if 2 * whole > adapter:
        lines.append("warning: most of the adapter is stored whole: a low rank saves little here")
    return lines
