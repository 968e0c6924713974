"""LoRA adapters in PEFT's folders: pairs of small matrices by the module whose weight they change."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npmerge.checkpoint.dtypes import FLOATS
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.formats import open_checkpoint
from npmerge.checkpoint.lora_config import CONFIG, LoraConfig, read_config
from npmerge.checkpoint.stored import StoredModel

PREFIX = "base_model.model."
FACTORS = {
    ".lora_A.weight": ("A", False),
    ".lora_B.weight": ("B", False),
    ".lora_embedding_A": ("A", True),
    ".lora_embedding_B": ("B", True),
}
"""How names of tensors end: which factor they are, and whether of an embedding."""


@dataclass(frozen=True)
class Pair:
    """Where the two factors of an update lie.

    Attributes:
        A: name of the tensor (r, in) or, for a convolution, (r, in, ...kernel); of an embedding (r, rows).
        B: name of the tensor (out, r) or (out, r, 1, ...).
        embedding: whether the weight is (in, out).
        scale: by which B A is multiplied.
    """

    A: str
    B: str
    embedding: bool
    scale: float


@dataclass(frozen=True)
class Adapter:
    """An adapter whose headers have been read.

    Attributes:
        path: its folder.
        config: as of `read_config`.
        stored: its tensors.
        pairs: by module, as the base names it.
        replaced: tensors that take the place of the base's (`modules_to_save`, biases), by the base's name.
    """

    path: Path
    config: LoraConfig
    stored: StoredModel
    pairs: Mapping[str, Pair]
    replaced: Mapping[str, str]

    def factors(self, module: str) -> tuple[np.ndarray, np.ndarray]:
        """A (r, in) and B (out, r) of a module in float32, without its scale; kernels as (r, in * kernel)."""
        pair = self.pairs[module]
        rank = self.config.rank(module)
        A, B = (np.asarray(self.stored.read(name), np.float32) for name in (pair.A, pair.B))
        return A.reshape(rank, -1), B.reshape(-1, rank)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one of its tensors."""
        return self.stored.entries[name].shape


def open_adapter(path: Path | str) -> Adapter:
    """An adapter in a folder of PEFT's, of any format that is read here.

    Raises:
        CheckpointError: no adapter there, one of another kind, factors that lack their partner, have shapes that do not fit
            each other and the rank, or belong to modules that the configuration does not name.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(path, f"expected a folder with {CONFIG}")
    config = read_config(path)
    stored = open_checkpoint(_weights(path))
    factors: dict[str, dict[str, tuple[str, bool]]] = {}
    replaced: dict[str, str] = {}
    for name in stored.entries:
        end = next((x for x in FACTORS if name.endswith(x)), None)
        short = name.removeprefix(PREFIX)
        if end is not None:
            which, embedding = FACTORS[end]
            factors.setdefault(short.removesuffix(end), {})[which] = (name, embedding)
        elif ".lora_" in name:
            raise CheckpointError(path, "is no part of a plain LoRA", name)
        else:
            replaced[short.replace(".modules_to_save.", ".").replace(".base_layer.", ".")] = name
    pairs = {module: _pair(path, config, module, found) for module, found in factors.items()}
    if not pairs and not replaced:
        raise CheckpointError(path, "has no tensors")
    adapter = Adapter(path, config, stored, pairs, replaced)
    for module in pairs:
        _check(adapter, module)
    return adapter


def _weights(folder: Path) -> Path:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(folder, "holds neither adapter_model.safetensors nor adapter_model.bin")


def _pair(path: Path, config: LoraConfig, module: str, found: Mapping[str, tuple[str, bool]]) -> Pair:
    if len(found) < 2:
        (have,), lacks = found, "B" if "A" in found else "A"
        raise CheckpointError(path, f"has no partner: expected a factor {lacks} of {module!r}", found[have][0])
    if not config.is_target(module):
        raise CheckpointError(path, f"is of {module!r}, which target_modules does not name", found["A"][0])
    if found["A"][1] != found["B"][1]:
        raise CheckpointError(path, f"is of an embedding, {found['B'][0]!r} is not, or the other way round", found["A"][0])
    return Pair(found["A"][0], found["B"][0], found["A"][1], config.scale(module))


def _check(adapter: Adapter, module: str) -> None:
    pair, rank = adapter.pairs[module], adapter.config.rank(module)
    for name in (pair.A, pair.B):
        if (dtype := adapter.stored.entries[name].dtype) not in FLOATS:
            raise CheckpointError(adapter.path, f"has the dtype {dtype}, expected one of {', '.join(FLOATS)}", name)
    a, b = adapter.shape(pair.A), adapter.shape(pair.B)
    fits = len(a) == len(b) >= 2 and a[0] == b[1] == rank and all(n == 1 for n in b[2:])
    if not fits:
        raise CheckpointError(
            adapter.path, f"has the shape {a}, {pair.B!r} {b}: expected ({rank}, in) and (out, {rank})", pair.A
        )
