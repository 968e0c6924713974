"""The command: `python -m experiments.universal_features --preset cpu --seeds 3`."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.command import Out, PresetOption, Seed, Seeds, launch
from experiments.corpora import LUA, PLAYS
from experiments.run import Preset
from experiments.universal_features.command import reproduce


def main(
    preset: PresetOption = Preset.cpu,
    out: Out = Path("experiments/results/universal_features"),
    seed: Seed = 0,
    seeds: Seeds = 1,
    *,
    plays: Annotated[Path, typer.Option(help="Tiny Shakespeare, plain or .xz; the test preset has its own.")] = PLAYS,
    lua: Annotated[Path, typer.Option(help="A folder with sources of Lua; the test preset has its own.")] = LUA,
) -> None:
    """Train a language model and two fine-tunes, merge them, train autoencoders, follow features, write the pages."""
    reproduce(preset, out, range(seed, seed + seeds), plays=plays, lua=lua)


if __name__ == "__main__":
    launch(main)
