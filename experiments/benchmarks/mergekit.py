"""Recipes against mergekit, whole processes in turns: `python -m experiments.benchmarks.mergekit --peer .../mergekit-yaml`.

Writes checkpoints of 468 M parameters into `--checkpoints` unless they are there, merges them by each recipe with both
programs, and writes rows.json and README.md with the ratios of medians.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from experiments.benchmarks.llama_checkpoints import Shape, write_checkpoints
from experiments.benchmarks.mergekit_page import page
from experiments.benchmarks.whole_processes import Cost, in_turns, measured

ROOT = Path(__file__).parents[2]
WEIGHTS = (0.5, 0.3, 0.2)
SLERP = """models:
- {model: m1}
- {model: m2}
merge_method: slerp
base_model: m1
parameters:
  t:
  - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
  - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
  - {value: 0.5}
dtype: bfloat16
"""


def three(method: str, *, base: bool = True, weights: bool = True, density: float | None = None) -> str:
    """A recipe of the three fine-tunes."""
    own = [{"weight": w} if weights else {} for w in WEIGHTS]
    own = [x | ({} if density is None else {"density": density}) for x in own]
    lines = ["models:", *(f"- {{model: m{k + 1}, parameters: {json.dumps(x)}}}" for k, x in enumerate(own))]
    return "\n".join([*lines, f"merge_method: {method}", *(["base_model: base"] if base else []), "dtype: bfloat16", ""])


RECIPES = {
    "linear": three("linear", base=False),
    "slerp": SLERP,
    "task_arithmetic": three("task_arithmetic"),
    "model_stock": three("model_stock", weights=False),
    "dare_ties": three("dare_ties", density=0.5),
    "ties": three("ties", density=0.5),
}
BUDGET = "64MB"
IMPORTS = "import jax, npmerge.commands.merge, npmerge.stream.kernels; jax.devices()"


@dataclass(frozen=True)
class Setting:
    """Where things are.

    Attributes:
        checkpoints: folder of base, m1, m2 and m3, where the processes run.
        tiny: folder of the same with next to no weights, for what starting takes; None to leave that out.
        scratch: folder of recipes, outputs and logs.
        peer: mergekit-yaml; None to do without.
    """

    checkpoints: Path
    tiny: Path | None
    scratch: Path
    peer: Path | None

    def run(self, command: Sequence[str | Path], folder: Path | None = None) -> Cost:
        """One process in the folder of the checkpoints, or another."""
        settings = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        return measured([str(x) for x in command], folder or self.checkpoints, self.scratch / "log", settings)

    def merge(self, program: str, recipe: str, *flags: str, tiny: bool = False) -> Cost:
        """One merge, by "npmerge" or "mergekit", whose output is removed."""
        out, path = self.scratch / "merged", self.scratch / "recipe.yml"
        path.write_text(recipe)
        ours: list[str | Path] = [sys.executable, "-m", "npmerge", "merge", path, out, "--quiet", "--seed", "1", *flags]
        quiet = ["--quiet", "--random-seed", "1", "--no-write-model-card"]  # a card asks the hub about every model
        theirs: list[str | Path] = [str(self.peer), path, out, *quiet]
        cost = self.run(ours if program == "npmerge" else theirs, self.tiny if tiny else None)
        if not list(out.glob("*.safetensors")):
            raise ValueError(f"{program} wrote no weights: {(self.scratch / 'log').read_text()[-2000:]}")
        shutil.rmtree(out)
        return cost

    def floor(self) -> Cost:
        """Read what a linear merge reads, write what it writes."""
        inputs, out = [self.checkpoints / f"m{k}" for k in (1, 2, 3)], self.scratch / "bytes"
        cost = self.run([sys.executable, "-m", "experiments.benchmarks.read_and_write", *inputs, out])
        out.unlink()
        return cost


def runs(setting: Setting, methods: Sequence[str]) -> dict[str, Callable[[], Cost]]:
    """All that is timed, by name: "program: what"."""
    programs = ["npmerge", *(["mergekit"] if setting.peer else [])]
    found: dict[str, Callable[[], Cost]] = {}
    for method in methods:
        found |= {f"{p}: {method}": partial(setting.merge, p, RECIPES[method]) for p in programs}
    if setting.tiny:
        found |= {f"{p}: start": partial(setting.merge, p, RECIPES["linear"], tiny=True) for p in programs}
    for method in methods:
        flags = ("--memory-budget", BUDGET)
        found[f"npmerge: {method}, {BUDGET}"] = partial(setting.merge, "npmerge", RECIPES[method], *flags)
    found["npmerge: imports"] = partial(setting.run, [sys.executable, "-c", IMPORTS])
    found["npmerge: help"] = partial(setting.run, [sys.executable, "-m", "npmerge", "--help"])
    return found | {"floor: read and write": setting.floor}


def versions(peer: Path | None) -> dict[str, str]:
    """Of what ran, and on which machine."""
    found = {name: importlib.metadata.version(name) for name in ("npmerge", "jax", "numpy")}
    if peer:
        code = "import importlib.metadata as m; print(*(m.version(x) for x in ('mergekit', 'torch')))"
        given = subprocess.run([peer.parent / "python", "-c", code], capture_output=True, text=True, check=True).stdout.split()
        found |= dict(zip(("mergekit", "torch"), given, strict=True))
    return found | {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}


def main(
    *,
    peer: Annotated[Path | None, typer.Option(help="mergekit-yaml; without it only ours is timed.")] = None,
    checkpoints: Annotated[Path, typer.Option(help="Folder of the checkpoints, written if empty.")] = Path("checkpoints"),
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("experiments/results/benchmarks/mergekit"),
    repeats: Annotated[int, typer.Option("-n", help="Turns; the numbers are medians of them.")] = 3,
    methods: Annotated[str, typer.Option(help="Which recipes, separated by commas.")] = ",".join(RECIPES),
    quick: Annotated[bool, typer.Option("--quick", help="Tiny checkpoints, one turn: to see that it runs.")] = False,
) -> None:
    """Time every recipe with both programs and write the table of ratios."""
    chosen, repeats = methods.split(","), 1 if quick else repeats
    if unknown := set(chosen) - set(RECIPES):
        raise typer.BadParameter(f"--methods: got {', '.join(sorted(unknown))}, expected some of {', '.join(RECIPES)}")
    tiny = Shape(64, 128, 1, 100)
    if not (checkpoints / "base").exists():
        write_checkpoints(checkpoints, tiny if quick else Shape())
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=checkpoints) as scratch:
        place = Path(scratch).resolve()
        setting = Setting(checkpoints.resolve(), None if quick else place / "tiny", place, peer)
        if setting.tiny:
            write_checkpoints(setting.tiny, tiny)
        costs = in_turns(runs(setting, chosen), repeats)
    flags = f" -n {repeats} --methods {methods}{' --quick' if quick else ''}"
    about = {**versions(peer), "seconds": round(time.perf_counter() - began), "turns": repeats, "flags": flags}
    rows = [{"run": name, "turns": [asdict(c) for c in found]} for name, found in costs.items()]
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    text = page(costs, about)
    (out / "README.md").write_text(text, encoding="utf-8")
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
