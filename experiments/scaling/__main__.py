"""The command: `python -m experiments.scaling --preset cpu --out experiments/results/scaling --seeds 3`."""

from pathlib import Path

from experiments.command import Data, Download, Out, PresetOption, Seed, Seeds, launch
from experiments.run import Preset
from experiments.scaling.command import reproduce


def main(
    preset: PresetOption = Preset.cpu,
    out: Out = Path("experiments/results/scaling"),
    seed: Seed = 0,
    seeds: Seeds = 1,
    *,
    data: Data = "",
    download: Download = False,
) -> None:
    """Train 64 networks, merge 2 to 64 of them in every way, write the rows, the figures and the page."""
    reproduce(preset, out, range(seed, seed + seeds), data=data, download=download)


if __name__ == "__main__":
    launch(main)
