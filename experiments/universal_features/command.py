"""From a preset to a folder of results."""

from pathlib import Path

import numpy as np

from experiments import corpora
from experiments.command import command_of
from experiments.folder import write_summary
from experiments.parents import seconds_of
from experiments.run import Preset, machine
from experiments.text import Text
from experiments.universal_features.networks import Networks
from experiments.universal_features.page import write
from experiments.universal_features.rows import Experiment, files
from experiments.universal_features.settings import ENGLISH, LUA, PLAYS, PRESETS, PYTHON, Settings, made_with


def texts(settings: Settings, plays: Path, lua: Path) -> dict[str, Text]:
    """By name; no two have a module of Python in common.

    Raises:
        ValueError: plays or Lua that are not found.
    """
    limit = settings.characters
    found = {ENGLISH: corpora.python(corpora.prose, 0, 4, limit), PYTHON: corpora.python(corpora.code, 1, 4, limit)}
    if settings.packaged:
        other = {PLAYS: corpora.python(corpora.prose, 2, 4, limit), LUA: corpora.python(corpora.documented, 3, 4, limit)}
    else:
        other = {PLAYS: corpora.plays(plays, limit), LUA: corpora.lua(lua, limit)}
    return found | other


def reproduce(preset: Preset, out: Path, seeds: range, *, plays: Path = corpora.PLAYS, lua: Path = corpora.LUA) -> None:
    """Make every row that is not there yet, then figures, summary and pages.

    Args:
        preset: how much work.
        out: folder of the results.
        seeds: of which.
        plays: Tiny Shakespeare.
        lua: a folder with sources of Lua.

    Raises:
        ValueError: texts that are not found, rows made with other settings.
    """
    settings = PRESETS[preset]
    found = texts(settings, plays, lua)
    rows = files(out, made_with(settings, found))
    for seed in seeds:
        Experiment(settings, Networks(settings, found, out / "parents", seed), rows).run()
    command = command_of("universal_features", preset, out, seeds)
    command += f" --plays {plays}" if plays != corpora.PLAYS else ""
    command += f" --lua {lua}" if lua != corpora.LUA else ""
    measured = (rows.rows, rows.slerp, rows.dictionaries, rows.flows, rows.origins)
    seconds = {"parents": seconds_of(out / "parents"), "rows": round(sum(r["seconds"] for x in measured for r in x.all), 1)}
    characters = {name: int(np.size(text.train)) for name, text in found.items()}
    summary = {"preset": str(preset), "command": command, "characters": characters, "machine": machine(), "seconds": seconds}
    write_summary(out, summary)
    write(out)
