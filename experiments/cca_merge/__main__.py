"""The command: `python -m experiments.cca_merge --preset cpu --out experiments/results/cca_merge --seeds 3`."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.cca_merge.command import reproduce
from experiments.run import Preset


def main(
    preset: Annotated[Preset, typer.Option(help="How much work.")] = Preset.cpu,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("experiments/results/cca_merge"),
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
    *,
    data: Annotated[str, typer.Option(help="A folder with the data sets; by default they are looked for.")] = "",
    download: Annotated[bool, typer.Option("--download", help="Fetch data sets that are not found.")] = False,
    task: Annotated[list[str] | None, typer.Option(help="Only the rows of this task; may be repeated.")] = None,
) -> None:
    """Train networks, merge 2 to 20 of them in every way, write the rows, the figures and the page."""
    reproduce(preset, out, range(seed, seed + seeds), data=data, download=download, only=tuple(task or ()))


if __name__ == "__main__":
    typer.run(main)
