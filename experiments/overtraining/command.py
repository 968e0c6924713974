"""From a preset to a folder of results."""

from pathlib import Path

from experiments.command import command_of
from experiments.folder import write_summary
from experiments.overtraining.experts import Family
from experiments.overtraining.page import write
from experiments.overtraining.rows import Experiment, files
from experiments.overtraining.settings import PRESETS, made_with
from experiments.overtraining.tasks import source
from experiments.run import Preset, machine


def reproduce(preset: Preset, out: Path, seeds: range, *, data: str = "", download: bool = False) -> None:
    """Make every row that is not there yet, then figures, summary and page.

    Args:
        preset: how much work.
        out: folder of the results.
        seeds: of which.
        data: a folder with the data sets; empty to look for them.
        download: whether to fetch images that are not found.

    Raises:
        ValueError: missing data (what it is, where it comes from), rows made with other settings.
    """
    settings = PRESETS[preset]
    sources = {setup.name: source(setup, data, download=download) for setup in settings.setups}
    found = files(out, made_with(settings, {name: told for name, (told, _) in sources.items()}))
    for seed in seeds:
        for setup in settings.setups:
            Experiment(Family(settings, setup, sources[setup.name][1](seed), seed), found).run()
    summary = {
        "preset": str(preset),
        "command": command_of("overtraining", preset, out, seeds, data=data),
        "machine": machine(),
        "seconds": round(sum(row["seconds"] for row in found.rows.all), 1),
    }
    write_summary(out, summary)
    write(out)
