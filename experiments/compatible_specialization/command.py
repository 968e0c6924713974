"""From a preset to a folder of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.command import command_of
from experiments.compatible_specialization.networks import Networks, parts
from experiments.compatible_specialization.page import write
from experiments.compatible_specialization.rows import Experiment, files
from experiments.compatible_specialization.settings import PRESETS, TUNED_BASE, made_with
from experiments.compatible_specialization.texts import texts
from experiments.corpora import PLAYS
from experiments.folder import write_summary
from experiments.parents import seconds_of
from experiments.run import Preset, machine


def reproduce(preset: Preset, out: Path, seeds: range, plays: Path = PLAYS) -> None:
    """Make every row that is not there yet, then figures, summary and page.

    Args:
        preset: how much work.
        out: folder of the results.
        seeds: of which.
        plays: Tiny Shakespeare.

    Raises:
        ValueError: plays that are not found, rows made with other settings.
    """
    settings = PRESETS[preset]
    found = texts(settings, plays)
    rows = files(out, made_with(settings, found))
    for seed in seeds:
        Experiment(settings, Networks(settings, found, out / "parents", seed), rows).run()
    command = command_of("compatible_specialization", preset, out, seeds) + (f" --plays {plays}" if plays != PLAYS else "")
    seconds = {"parents": seconds_of(out / "parents"), "rows": seconds_of_rows(rows.rows.all)}
    summary = {"preset": str(preset), "command": command, "characters": parts(found), "machine": machine(), "seconds": seconds}
    write_summary(out, summary)
    write(out)


def seconds_of_rows(rows: Sequence[Mapping[str, Any]]) -> float:
    """Of all rows; of the fine-tuned base, which is the same at every moment of the experts, once for each target."""
    once = {(r["seed"], r["target"], r["way"], r["way"] == TUNED_BASE or r["steps"]): r["seconds"] for r in rows}
    return float(round(sum(once.values()), 1))
