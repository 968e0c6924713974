"""Which data are at hand, read and checked: `python -m experiments.data [NAME...] [--data FOLDER] [--download]`."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.data.catalogue import CATALOGUE
from experiments.data.find import load


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(CATALOGUE)}; all of them if none.")] = None,
    data: Annotated[Path | None, typer.Option(help="Where they lie, if not where they are looked for.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch what is not found from its official site.")] = False,
) -> None:
    """Print what is found of each set; end with 1 if something is missing or damaged."""
    missing = False
    for name in names or CATALOGUE:
        try:
            found = load(name, data, download=download)
            shape = " x ".join(map(str, found.train.images.shape[1:]))
            sizes = f"{len(found.train.labels):,} images of {shape} for training, {len(found.test.labels):,} for testing"
            typer.echo(f"{name}: {found.name}, {found.found}: {sizes}")
        except ValueError as error:
            missing = True
            typer.echo(f"{name}: {error}")
    raise typer.Exit(int(missing))


if __name__ == "__main__":
    typer.run(main)
