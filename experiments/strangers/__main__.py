"""`python -m experiments.strangers --preset cpu --out experiments/results/strangers --seeds 3`: rows, figures and a page."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.command import Out, PresetOption, Seed, Seeds, launch
from experiments.data import IMAGENET, load, standardised
from experiments.folder import write_summary
from experiments.run import Preset, Rows, machine
from experiments.strangers.networks import FOLDER
from experiments.strangers.networks import load as load_networks
from experiments.strangers.page import write
from experiments.strangers.rows import Experiment
from experiments.strangers.settings import PRESETS, made_with


def main(
    preset: PresetOption = Preset.cpu,
    out: Out = Path("experiments/results/strangers"),
    seed: Seed = 0,
    seeds: Seeds = 1,
    *,
    data: Annotated[Path | None, typer.Option(help="Folder or file of CIFAR-10, looked for if not given.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10 where it is not found.")] = False,
    published: Annotated[Path, typer.Option(help="Folder of the published networks.")] = FOLDER,
    networks: Annotated[list[Path] | None, typer.Option(help="Files of other networks to merge; give it for each.")] = None,
) -> None:
    """Merge networks that strangers have published, in every way; write rows, figures and the page."""
    settings = PRESETS[preset]
    if networks:
        parts = [part.of(tuple(map(str, networks))) for part in settings.parts if part.networks == settings.parts[0].networks]
        settings = dataclasses.replace(settings, parts=tuple(parts))
    images = standardised(load("cifar10", data, download=download), validation=0, scale=IMAGENET)
    made = made_with(settings, images.name)
    rows = Rows(out / "rows.csv", ("seed", "networks", "method", "images", "size"), made)
    paths = Rows(out / "paths.csv", ("seed", "networks", "alignment"), made)
    given = f"--preset {preset} --out {out} --seed {seed} --seeds {seeds}" + "".join(f" --networks {n}" for n in networks or ())
    summary = {"command": f"python -m experiments.strangers {given}", "machine": machine()}
    for part in settings.parts:
        strangers = load_networks(part.networks, published)
        tell(f"{' + '.join(strangers.names)}: traced, units exchanged change the outputs by {strangers.error:.1g}")
        for k in range(seed, seed + min(seeds, part.seeds)):
            Experiment(part, strangers, images, settings, k).run(rows, paths, tell)
            _report(out, summary | {"complete": False})  # of what is there: the rest may take hours
    _report(out, summary | {"complete": True})


def _report(out: Path, summary: dict[str, Any]) -> None:
    write_summary(out, summary)
    write(out)


def tell(text: str) -> None:
    """Progress, on the standard error."""
    typer.echo(text, err=True)


if __name__ == "__main__":
    launch(main)
