"""From a preset to a folder of results."""

from pathlib import Path

from experiments.command import command_of
from experiments.data import load, standardised
from experiments.folder import write_summary
from experiments.problem import first
from experiments.run import Preset, Rows, machine
from experiments.scaling.networks import Networks, seconds_of
from experiments.scaling.page import write
from experiments.scaling.rows import Experiment
from experiments.scaling.settings import KEY, PRESETS, made_with


def reproduce(preset: Preset, out: Path, seeds: range, *, data: str = "", download: bool = False) -> None:
    """Make every row that is not there yet, then figures, summary and page.

    Args:
        preset: how much work.
        out: folder of the results.
        seeds: of which.
        data: a folder with the data set; empty to look for it.
        download: whether to fetch it where it is not found.

    Raises:
        ValueError: missing data (what it is, where it comes from), rows made with other settings.
    """
    settings = PRESETS[preset]
    images = standardised(load(settings.data, data or None, download=download))
    rows = Rows(out / "rows.csv", KEY, made_with(settings, images.name))
    for seed in seeds:
        for block in settings.blocks:
            Experiment(Networks(settings, block, images, seed, out / "parents"), rows).run()
    summary = {
        "preset": str(preset),
        "command": command_of("scaling", preset, out, seeds, data=data),
        "images": len(first(images, settings.images).train.labels),
        "machine": machine(),
        "seconds": {"parents": seconds_of(out / "parents"), "rows": round(sum(row["seconds"] for row in rows.all), 1)},
    }
    write_summary(out, summary)
    write(out)
