"""Every benchmark in one go and one table of ratios: `python -m experiments.benchmarks.all --peer .../mergekit-yaml`.

Each runs in a process of its own, one after another; the machine should have nothing else to do.
"""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import jax
import typer

from experiments.benchmarks.ratios import ratios, table
from npmerge.version import __version__

ROOT = Path(__file__).parents[2]
HERE = "experiments.benchmarks"


def commands(results: Path, peer: Path | None, checkpoints: Path) -> dict[str, list[str]]:
    """What is run, by name."""
    found = {"pairs": [HERE, "--out", str(results)]}
    found |= {
        name: [f"{HERE}.{name}", "--out", str(results / name)] for name in ("learning", "layer_groups", "scaling", "kills")
    }
    found["learning"] += ["-n", "3"]
    found["convert"] = [f"{HERE}.convert", str(results / "convert")]
    if peer:
        found["mergekit"] = [f"{HERE}.mergekit", "--peer", str(peer), "--checkpoints", str(checkpoints)]
        found["mergekit"] += ["--out", str(results / "mergekit")]
    return found


def page(results: Path, seconds: dict[str, float]) -> str:
    """Markdown: the table, and what is more than was asked."""
    found = ratios(results)
    short = [r for r in found if r.short]
    lines = ["# All benchmarks", "", *table(found), ""]
    lines += [f"{len([r for r in found if r.asked])} have a limit, {len(short)} of them are above it.", ""]
    ran = ", ".join(f"{name} {t:.0f} s" for name, t in seconds.items())
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}"
    lines += [f"`python -m {HERE}.all` ({ran}), npmerge {__version__}, jax {jax.__version__}, {machine}."]
    return "\n".join(lines) + "\n"


def main(
    results: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("experiments/results/benchmarks"),
    peer: Annotated[Path | None, typer.Option(help="mergekit-yaml; without it recipes are left as they were.")] = None,
    checkpoints: Annotated[Path, typer.Option(help="Folder of the recipes' checkpoints, written if empty.")] = Path(
        "checkpoints"
    ),
    only: Annotated[str | None, typer.Option(help="Names of those to run, separated by commas; all else stays.")] = None,
) -> None:
    """Run all benchmarks, each in a process of its own, and write the table of ratios."""
    chosen, seconds = commands(results, peer, checkpoints), {}
    for name, command in chosen.items():
        if only is None or name in only.split(","):
            typer.echo(f"{name} ...", err=True)
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            seconds[name] = time.perf_counter() - begun
    text = page(results, seconds)
    (results / "all").mkdir(parents=True, exist_ok=True)
    (results / "all" / "README.md").write_text(text, encoding="utf-8")
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
