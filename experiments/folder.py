"""The folder of a result: its summary, figures and page, written in one way by all experiments that make it of rows."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """What pages say of a run, as `summary.json`; other commands, whose rows are there too, stay under `before`."""
    path = folder / "summary.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    commands = [*earlier.get("before", ()), *filter(None, [earlier.get("command")])]
    before = [command for command in dict.fromkeys(commands) if command != summary["command"]]
    told = {**summary, "before": before} if before else summary
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def write_result(folder: Path, figures: Mapping[str, Figure], page: Callable[[Path], str]) -> None:
    """The figures, by the names of their files, and then the page that shows them."""
    for name, drawing in figures.items():
        drawing.savefig(folder / f"{name}.png", dpi=150)
    (folder / "README.md").write_text(page(folder), encoding="utf-8")


def shown(folder: Path, captions: Mapping[str, str]) -> Iterator[str]:
    """Lines of a page: those figures that there are."""
    for name, words in captions.items():
        if (folder / f"{name}.png").is_file():
            yield from (f"![{words}]({name}.png)", "")


def made(summary: Mapping[str, Any], *, training_in_rows: bool) -> str:
    """The last line of a page: commands, seconds, machine.

    Args:
        summary: with `command`, `machine`, and `seconds` of the `parents` that were trained and of all `rows`; perhaps with
            the commands `before`.
        training_in_rows: whether networks were trained while a row was timed.
    """
    parents, rows = (summary["seconds"][name] for name in ("parents", "rows"))
    rows = max(0.0, rows - parents) if training_in_rows else rows  # none are left where networks were made before
    seconds = f"{parents:,.0f} s to train the networks and {rows:,.0f} s for the rows"
    commands = ", then ".join(f"`{command}`" for command in [*summary.get("before", ()), summary["command"]])
    return f"{commands}, {seconds}, {summary['machine']}."
