"""A model with an adapter: the update of low rank is added to each block as it is read."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np

from npmerge.checkpoint.adapter import Adapter, Pair, open_adapter
from npmerge.checkpoint.dtypes import DTYPES, FLOATS
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.formats import open_checkpoint
from npmerge.checkpoint.lora_config import CONFIG
from npmerge.checkpoint.stored import Entry, StoredModel

CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Kinds of models whose linear layers are stored as (in, out)."""

WITHOUT = ("transformer.", "model.", "bert.", "roberta.", "base_model.")
"""What files of a base may leave out at the beginning of the names that the adapter has."""


class AdaptedModel(StoredModel):
    """The base with W + scale B A in place of W, computed in float32 and rounded once to the dtype of the base.

    Attributes:
        base: the model that is adapted.
        adapter: what is added.
    """

    def __init__(self, base: StoredModel, adapter: Adapter):
        """Raises CheckpointError for tensors of the adapter that fit none of the base (all of them are listed)."""
        self.base, self.adapter = base, adapter
        self.path, self.config = base.path, base.config
        self.called = f"{base.name}+{adapter.path}"
        self.notes = base.notes
        prefix = prefix_of(base, adapter)
        self._updates = {f"{module}.weight".removeprefix(prefix): module for module in adapter.pairs}
        self._replaced = {name.removeprefix(prefix): stored for name, stored in adapter.replaced.items()}
        self._check()
        self.entries: Mapping[str, Entry] = MappingProxyType(dict(base.entries))
        self._factors = lru_cache(maxsize=4)(self._load)

    @property
    def read_from(self) -> tuple[Path, ...]:
        """Files of the base, and of the adapter with its configuration."""
        return (*self.base.read_from, *self.adapter.stored.read_from, self.adapter.path / CONFIG)

    def read(self, name: str, start: int = 0, count: int | None = None) -> np.ndarray:
        """See `StoredModel.read`."""
        if name in self._replaced:
            stored = self.adapter.stored.read(self._replaced[name], start, count)
            return stored.astype(DTYPES[self.entries[name].dtype], copy=False)
        block = self.base.read(name, start, count)
        if name not in self._updates or not block.size:
            return block
        return (block.astype(np.float32) + self._update(name, start, block.size)).astype(block.dtype)

    def factors(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Factors (rows, r) and (r, columns) in float32 by the name of the weight, the scale in the first."""
        return {name: self._load(name) for name in self._updates}

    def _update(self, name: str, start: int, count: int) -> np.ndarray:
        """The entries of scale B A at the flat positions of a block, from the rows that the block touches."""
        left, right = self._factors(name)
        width = right.shape[1]
        first, last = start // width, -(-(start + count) // width)
        rows = left[first:last] @ right
        return rows.reshape(-1)[start - first * width :][:count]

    def _load(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Factors (rows, r) and (r, columns) whose product is the update, the scale in the first."""
        module = self._updates[name]
        A, B = self.adapter.factors(module)
        pair = self.adapter.pairs[module]
        left, right = (A.T, B.T) if self._is_transposed(name, pair) else (B, A)
        return np.float32(pair.scale) * left, np.ascontiguousarray(right)

    def _is_transposed(self, name: str, pair: Pair) -> bool:
        """Whether the weight is (in, out): shapes tell, and the configuration where the weight is square."""
        a, b, shape = self.adapter.shape(pair.A), self.adapter.shape(pair.B), self.base.entries[name].shape
        if pair.embedding or len(a) > 2 or a[1] == b[0]:
            conv1d = self.config.get("model_type") in CONV1D and not name.startswith("lm_head")
            return pair.embedding or (len(a) == 2 and (self.adapter.config.fan_in_fan_out or conv1d))
        return shape == (a[1], b[0])

    def _check(self) -> None:
        adapter, base = self.adapter, self.base
        wrong = [f"{adapter.pairs[module].A} ({why})" for name, module in self._updates.items() if (why := self._misfit(name))]
        for name, stored in self._replaced.items():
            if name not in base.entries:
                wrong.append(f"{stored} (no {name})")
            elif base.entries[name].shape != adapter.shape(stored):
                wrong.append(f"{stored} has {adapter.shape(stored)}, the base {base.entries[name].shape}")
        if len(set(self._updates)) < len(adapter.pairs):
            wrong.append("two updates of one weight")
        if wrong:
            more = f" and {len(wrong) - 20} more" if len(wrong) > 20 else ""
            raise CheckpointError(adapter.path, f"does not fit {base.name}: {'; '.join(wrong[:20])}{more}")

    def _misfit(self, name: str) -> str:
        """What keeps an update from its weight; empty if nothing does."""
        if name not in self.base.entries:
            return f"no {name}"
        entry, pair = self.base.entries[name], self.adapter.pairs[self._updates[name]]
        a, b = self.adapter.shape(pair.A), self.adapter.shape(pair.B)
        plain, swapped = (b[0], *a[1:]), (a[1], b[0])
        allowed = [swapped] if pair.embedding else [plain, swapped] if len(a) == 2 else [plain]
        if entry.shape not in allowed:
            return f"of a weight {plain}, {name} has {entry.shape}"
        return "" if entry.dtype in FLOATS else f"{name} has the dtype {entry.dtype}: dequantise the base first"


def open_adapted(base: StoredModel, adapter: Path | str) -> AdaptedModel:
    """A model with the adapter in a folder. Raises CheckpointError as `open_adapter` and for tensors that fit nothing."""
    return AdaptedModel(base, open_adapter(adapter))


def open_reference(text: Path | str) -> StoredModel:
    """A model as recipes name it: a path, or `path+adapter`, for as many adapters as there are, one after the other.

    A path that exists is that path, whatever characters it has.
    """
    base, adapters = split_reference(str(text))
    model = open_checkpoint(base)
    for adapter in adapters:
        model = open_adapted(model, adapter)
    return model


def split_reference(text: str) -> tuple[str, tuple[str, ...]]:
    """The base's path and those of the adapters: ("base", ("x", "y")) for "base+x+y" where no such path exists."""
    if "+" not in text or Path(text).exists():
        return text, ()
    parts, adapters = text, []
    while "+" in parts and not Path(parts).exists():
        cuts = [i for i, letter in enumerate(parts) if letter == "+"]
        cut = next((i for i in cuts if Path(parts[i + 1 :]).exists()), cuts[-1])
        adapters.append(parts[cut + 1 :])
        parts = parts[:cut]
    return parts, tuple(reversed(adapters))


def paths_of(text: str) -> list[Path]:
    """The paths that stand in a reference, the base's first."""
    base, adapters = split_reference(text)
    return [Path(base), *map(Path, adapters)]


def prefix_of(base: StoredModel, adapter: Adapter) -> str:
    """What is removed from the beginning of the adapter's names: the first that lets more tensors fit than any other does."""
    names = [f"{module}.weight" for module in adapter.pairs] + list(adapter.replaced)
    return max(("", *WITHOUT), key=lambda prefix: sum(name.removeprefix(prefix) in base.entries for name in names))
