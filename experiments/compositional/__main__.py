"""The command: `python -m experiments.compositional --preset cpu --out experiments/results/compositional --seeds 3`."""

from pathlib import Path

from experiments.command import Data, Only, Out, PresetOption, Seed, Seeds, launch
from experiments.compositional.command import reproduce
from experiments.run import Preset


def main(
    preset: PresetOption = Preset.cpu,
    out: Out = Path("experiments/results/compositional"),
    seed: Seed = 0,
    seeds: Seeds = 1,
    *,
    data: Data = "",
    only: Only = None,
) -> None:
    """Train a base and its experts, merge them in every way, write the rows, the figures and the page."""
    reproduce(preset, out, range(seed, seed + seeds), data=data, only=tuple(only or ()))


if __name__ == "__main__":
    launch(main)
