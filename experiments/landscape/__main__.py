"""The command: `python -m experiments.landscape --preset cpu --out experiments/results/landscape --seeds 3`."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.command import Out, PresetOption, Seed, Seeds, launch
from experiments.landscape.command import reproduce
from experiments.run import Preset
from experiments.strangers.networks import FOLDER


def main(
    preset: PresetOption = Preset.cpu,
    out: Out = Path("experiments/results/landscape"),
    seed: Seed = 0,
    seeds: Seeds = 1,
    *,
    data: Annotated[Path | None, typer.Option(help="Folder or file of the images, looked for if not given.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the images where they are not found.")] = False,
    published: Annotated[Path, typer.Option(help="Folder of the published networks.")] = FOLDER,
) -> None:
    """Look into parents and merges: lines, planes, images of units, similarities; write rows, pictures and the page."""
    given = {"data": data, "download": download, "published": published}
    reproduce(preset, out, range(seed, seed + seeds), tell=lambda said: typer.echo(said, err=True), **given)  # type: ignore[arg-type]


if __name__ == "__main__":
    launch(main)
