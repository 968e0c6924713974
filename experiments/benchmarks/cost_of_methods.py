"""What `npmerge merge` costs by method: `python -m experiments.benchmarks.cost_of_methods`.

CPU seconds per gigabyte of inputs as multiples of a probe of the same moment, so that a busy machine counts on both sides.
They stand in `npmerge.commands.prediction`.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import ml_dtypes
import numpy as np
import typer
from safetensors.numpy import save_file

from npmerge.commands.merge import Request, default_options, run_merge
from npmerge.commands.prediction import probed
from npmerge.recipe import METHODS

SHAPES = {"up.weight": (4096, 1024), "down.weight": (1024, 4096), "query.weight": (1024, 1024), "norm.weight": (1024,)}
MODELS = 3


def main(
    methods: Annotated[list[str] | None, typer.Argument(help="Those to measure (all).")] = None,
    layers: Annotated[int, typer.Option(help="Layers of the models.")] = 4,
) -> None:
    """Print a line for each method."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_models(root, layers)
        read = {name: (root / f"{name}.safetensors").stat().st_size for name in ("base", "m0", "m1", "m2")}
        for method in methods or METHODS:
            recipe = root / f"{method}.yml"
            recipe.write_text("\n".join(_recipe(root, method)), encoding="utf-8")
            inputs = sum(read[name] for name in read if f"/{name}.safetensors" in recipe.read_text(encoding="utf-8"))
            first, again = (_seconds(recipe, root / "out") for _ in range(2))
            relative = again / (inputs / 1e9) / probed()
            typer.echo(f"{method:16s} {relative:7.2f} times the probe; the first time {first - again:5.2f} CPU seconds more")


def _write_models(root: Path, layers: int) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"layers.{k}.{name}": rng.normal(0, 0.02, shape) for k in range(layers) for name, shape in SHAPES.items()}
    for name in ("base", *(f"m{k}" for k in range(MODELS))):
        scale = 0 if name == "base" else 0.002
        moved = {key: x + rng.normal(0, scale, x.shape) if scale else x for key, x in tensors.items()}
        save_file({key: x.astype(ml_dtypes.bfloat16) for key, x in moved.items()}, root / f"{name}.safetensors")


def _recipe(root: Path, method: str) -> Iterator[str]:
    """Three models where the method takes as many, with a base where it has one."""
    known = METHODS[method]
    yield f"merge_method: {method}"
    if known.base != "input":
        yield f"base_model: {root / 'base.safetensors'}"
    yield "models:"
    count = MODELS if known.most is None else known.most - (known.base == "first")
    yield from (f"  - model: {root / f'm{k}.safetensors'}" for k in range(count))
    names = [p.name for p in known.parameters]
    values = {"weight": 0.3, "density": 0.5, "t": 0.4}
    yield f"parameters: {{{', '.join(f'{key}: {value}' for key, value in values.items() if key in names)}}}"


def _seconds(recipe: Path, out: Path) -> float:
    begun = time.process_time()
    run_merge(Request(recipe, out, options=default_options(), force=True, quiet=True))
    return time.process_time() - begun


if __name__ == "__main__":
    typer.run(main)
