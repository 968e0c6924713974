"""The demo on all three splits and three seeds: `python -m experiments.demo --out experiments/results/demo`.

Writes the demo's own report for each split, and a page that compares them.
"""

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from experiments.command import launch
from npmerge.demo.command import run_demo
from npmerge.demo.digits import SPLITS
from npmerge.demo.page import HEADER, sectioned, table, verdict
from npmerge.reports.tables import markdown_table

EXPECTED = """Expected, after a pilot of one seed on the 80-20 split: alignment removes most of the barrier; a coefficient per
parameter beats one per tensor when labels are plenty and not when they are few; fine-tuning the aligned average, which has
as many free numbers and no box around them, is at least as good as NP Merge with all the labels."""


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("experiments/results/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="Small networks, few steps.")] = False,
) -> None:
    """Run the demo on every split and write one page."""
    contents = []
    for split in SPLITS:
        flags = " --quick" if quick else ""
        command = f"npmerge demo --split {split} --seed 0 --seeds {seeds}{flags}"
        run_demo(split, range(seeds), out=out / split, quick=quick, force=True, command=command)
        contents.append(json.loads((out / split / "summary.json").read_text(encoding="utf-8")))
    (out / "README.md").write_text(_page(contents, seeds), encoding="utf-8")


def _page(contents: list[dict[str, Any]], seeds: int) -> str:
    lines = ["# The demo: two networks on scikit-learn's digits", "", EXPECTED, ""]
    lines += [f"Command: `python -m experiments.demo --seeds {seeds}`. Protocol: see the report of each split.", ""]
    for content in contents:
        split = content["split"]
        lines += [f"## Split {split}", "", f"[Report]({split}/report.md) | [figure]({split}/curves.png)", ""]
        lines += [*(f"- {line}" for line in verdict(content)), ""]
        lines += [*markdown_table(HEADER, sectioned(table(content))), ""]
    machine = f"{platform.machine()}, {jax.devices()[0].device_kind}, Python {platform.python_version()}"
    lines += [f"npmerge {contents[0]['npmerge']}, jax {contents[0]['jax']}, {machine}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    launch(main)
