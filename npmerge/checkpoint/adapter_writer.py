"""Adapters written as PEFT reads them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from npmerge.checkpoint.adapter import PREFIX
from npmerge.checkpoint.dtypes import CODES
from npmerge.checkpoint.headers import layout
from npmerge.checkpoint.lora_config import CONFIG
from npmerge.checkpoint.partial import RECORD
from npmerge.checkpoint.stored import Entry
from npmerge.version import __version__


@dataclass(frozen=True)
class NewAdapter:
    """What is written.

    Attributes:
        tensors: by the name that PEFT stores, without its prefix.
        ranks: of each adapted module, whose scale is 1.
        base: what people call the base.
        saved: names of modules that are stored whole.
        fan_in_fan_out: whether linear weights are (in, out).
        bias: which biases are stored: `none`, `lora_only` (of modules with factors) or `all`.
        record: what `npmerge.json` says.
    """

    tensors: Mapping[str, np.ndarray]
    ranks: Mapping[str, int]
    base: str
    saved: tuple[str, ...] = ()
    fan_in_fan_out: bool = False
    bias: str = "none"
    record: Mapping[str, object] = field(default_factory=dict)

    def config(self) -> dict[str, object]:
        """The content of `adapter_config.json`: alpha is the rank everywhere, so every scale is 1."""
        r = max(self.ranks.values(), default=1)
        others = {module.replace(".", r"\."): rank for module, rank in self.ranks.items() if rank != r}
        return {
            "peft_type": "LORA",
            "base_model_name_or_path": self.base,
            "r": r,
            "lora_alpha": r,
            "rank_pattern": {f"^{module}": rank for module, rank in others.items()},
            "alpha_pattern": {f"^{module}": rank for module, rank in others.items()},
            "target_modules": sorted(self.ranks),
            "modules_to_save": list(self.saved) or None,
            "fan_in_fan_out": self.fan_in_fan_out,
            "bias": self.bias,
            "use_rslora": False,
            "use_dora": False,
            "lora_dropout": 0.0,
            "inference_mode": True,
            "task_type": None,
        }


def write_adapter(folder: Path, adapter: NewAdapter) -> None:
    """Configuration, tensors and record into a folder that exists. Raises ValueError where they cannot be written."""
    arrays = {PREFIX + name: np.ascontiguousarray(x) for name, x in sorted(adapter.tensors.items())}
    header = layout([Entry(n, CODES[x.dtype.name], x.shape) for n, x in arrays.items()], {"format": "pt"})
    record = {"npmerge": __version__, **adapter.record}
    try:
        with (folder / "adapter_model.safetensors").open("wb") as file:
            file.write(len(header.text).to_bytes(8, "little") + header.text)
            for name in header.tensors:
                file.write(arrays[name].tobytes())
        for name, content in ((CONFIG, adapter.config()), (RECORD, record)):
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror or error}") from None
