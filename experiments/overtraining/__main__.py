"""The command: `python -m experiments.overtraining --preset cpu --out experiments/results/overtraining --seeds 3`."""

from pathlib import Path

from experiments.command import Data, Download, Out, PresetOption, Seed, Seeds, launch
from experiments.overtraining.command import reproduce
from experiments.run import Preset


def main(
    preset: PresetOption = Preset.cpu,
    out: Out = Path("experiments/results/overtraining"),
    seed: Seed = 0,
    seeds: Seeds = 1,
    *,
    data: Data = "",
    download: Download = False,
) -> None:
    """Train experts, merge them at every moment of their training, write the rows, the figures and the page."""
    reproduce(preset, out, range(seed, seed + seeds), data=data, download=download)


if __name__ == "__main__":
    launch(main)
