"""The command: `python -m experiments.compatible_specialization --preset cpu --seeds 3`."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.command import Out, PresetOption, Seed, Seeds, launch
from experiments.compatible_specialization.command import reproduce
from experiments.corpora import PLAYS
from experiments.run import Preset


def main(
    preset: PresetOption = Preset.cpu,
    out: Out = Path("experiments/results/compatible_specialization"),
    seed: Seed = 0,
    seeds: Seeds = 1,
    *,
    plays: Annotated[Path, typer.Option(help="Tiny Shakespeare, plain or .xz; the test preset has its own.")] = PLAYS,
) -> None:
    """Train a language model and two experts, merge them in every way, write the rows, the figures and the page."""
    reproduce(preset, out, range(seed, seed + seeds), plays)


if __name__ == "__main__":
    launch(main)
