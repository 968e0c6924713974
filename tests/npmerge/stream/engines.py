"""Small models on disk, plans by hand and a kernel in NumPy, to test the engine by itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.sharded import open_model
from npmerge.recipe.plan import Plan, Source, Step
from npmerge.stream.blocks import Block, Kernel, KernelOf, Merged, Tensor

SHAPES = {"embed": (40, 8), "layers.0.w": (8, 8), "layers.0.norm": (8,), "layers.1.w": (9, 7), "empty": (0, 3), "head": (40, 8)}
BF16 = np.dtype(ml_dtypes.bfloat16)


class Linear:
    """The weighted sum; `survey` reads everything once, and is checked to give the same in every `merge`."""

    def __init__(self, in_blocks: bool = True):
        self.in_blocks = in_blocks

    def survey(self, tensor: Tensor) -> Any:
        return sum(tensor.each(lambda block: float(block.models[0].astype(np.float64).sum())))

    def merge(self, block: Block, surveyed: Any, step: Step) -> Merged:
        weights: Any = step.parameters["weight"]
        total = sum(w * x.astype(np.float32) for w, x in zip(weights, block.models, strict=True)) + np.float32(surveyed)
        values = np.asarray(total, np.float32).astype(DTYPES[step.dtype])
        error = np.abs(values.astype(np.float32) - total)
        return Merged(values, int((~np.isfinite(total)).sum()), float(np.nanmax(error, initial=0.0)))


def kernel_of(in_blocks: bool = True) -> KernelOf:
    kernel: Kernel = Linear(in_blocks)
    return lambda step: kernel


def write_models(folder: Path, count: int = 2, seed: int = 0) -> list[Path]:
    """Models of one file each, with a buffer of integers besides the tensors of `SHAPES`."""
    rng = np.random.default_rng(seed)
    paths = []
    for k in range(count):
        paths.append(folder / f"m{k}")
        paths[-1].mkdir(parents=True)
        tensors = {name: rng.standard_normal(shape).astype(BF16) for name, shape in SHAPES.items()}
        save_file({**tensors, "ids": np.arange(9) + k}, paths[-1] / "model.safetensors")
    return paths


def plan_of(paths: list[Path], weights: Mapping[str, float] | None = None) -> Plan:
    """Every tensor of `SHAPES` merged, the buffer copied from the first model."""
    models = tuple(open_model(path) for path in paths)
    w = {"weight": tuple(np.linspace(0.5, 1.5, len(models)))}
    steps = [
        Step(name, shape, "BF16", "merge", tuple(Source(k, name) for k in range(len(models))), method="linear", parameters=w)
        for name, shape in SHAPES.items()
    ]
    return Plan(models, (*steps, Step("ids", (9,), "I64", "copy", (Source(0, "ids"),))))


def expected(paths: list[Path]) -> dict[str, np.ndarray]:
    stored = [load_file(path / "model.safetensors") for path in paths]
    weights = np.linspace(0.5, 1.5, len(paths))
    total = {
        name: sum(w * x[name].astype(np.float64) for w, x in zip(weights, stored, strict=True))
        + stored[0][name].astype(np.float64).sum()
        for name in SHAPES
    }
    return {**total, "ids": stored[0]["ids"]}
