"""The command: `python -m experiments.np_merge --preset cpu --out experiments/results/np_merge --seeds 3`."""

from pathlib import Path

from experiments.command import Data, Download, Only, Out, PresetOption, Seed, Seeds, launch
from experiments.np_merge.command import reproduce
from experiments.run import Preset


def main(
    preset: PresetOption = Preset.cpu,
    out: Out = Path("experiments/results/np_merge"),
    seed: Seed = 0,
    seeds: Seeds = 1,
    *,
    data: Data = "",
    download: Download = False,
    only: Only = None,
) -> None:
    """Train networks, merge them, learn from there, write the rows, the figures and the page."""
    reproduce(preset, out, range(seed, seed + seeds), data=data, download=download, only=tuple(only or ()))


if __name__ == "__main__":
    launch(main)
