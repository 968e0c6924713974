"""What every benchmark came to, beside what was asked of it: read from the rows of their results."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.mergekit_page import FLOOR, HELP, IMPORTS_MB, WALL
from experiments.benchmarks.whole_processes import Cost, median
from npmerge.reports.tables import markdown_table

ASKED = {
    r"moments of all nodes, .* against plain forward": 1.35,
    r"NP Merge step, two .*": 1.10,
    r"weight matching, .*": 1 / 5,
    r"compile the gradient of a 30-step Sinkhorn .*": 1.0,
    r"TIES of 3 networks .* against their average": 4.0,
    r"TIES of 3 networks .* against flat vectors.*": 1 / 20,
    r"least squares, .*": 3.0,
    r"(read|safetensors to) (safetensors|npz|Orbax) .*": 1.3,
}
"""The largest ratio that is accepted, by "what against whom". Everything else is shown without."""


@dataclass(frozen=True)
class Ratio:
    """One pair that was timed, or weighed.

    Attributes:
        what: ours.
        against: a peer, or what the machine needs at least.
        ratio: ours to the other.
        asked: at most.
        page: the folder of its results, with the absolute figures.
    """

    what: str
    against: str
    ratio: float
    asked: float | None
    page: str

    @property
    def short(self) -> bool:
        """Whether it is more than was asked."""
        return self.asked is not None and self.ratio > self.asked


def ratios(results: Path) -> list[Ratio]:
    """All that results hold. Raises OSError for a benchmark that was not run."""
    return [*_pairs(results), *_learning(results), *_layer_groups(results), *_copies(results), *_recipes(results)]


def table(found: list[Ratio]) -> list[str]:
    """Markdown: one row for each pair."""
    header = ("what", "against", "ratio", "at most", "")
    rows = []
    for r in found:
        asked = "" if r.asked is None else f"{r.asked:.3g}"
        rows.append((f"[{r.what}]({r.page}/README.md)", r.against, f"{r.ratio:.3g}", asked, "more" if r.short else ""))
    return markdown_table(header, rows)


def asked(what: str, against: str) -> float | None:
    """The largest ratio that is accepted."""
    return next((limit for pattern, limit in ASKED.items() if re.fullmatch(pattern, f"{what} against {against}")), None)


def _rows(results: Path, page: str) -> Any:
    return json.loads((results / page / "rows.json").read_text(encoding="utf-8"))


def _pairs(results: Path) -> Iterator[Ratio]:
    for row in _rows(results, "."):
        what, against = row["what"], row["against"]
        yield Ratio(what, against, row["seconds"] / row["seconds_of_the_other"], asked(what, against), "..")


def _learning(results: Path) -> Iterator[Ratio]:
    for row in _rows(results, "learning")["rows"]:
        number = {2: "two", 4: "four", 8: "eight"}.get(row["models"], str(row["models"]))
        limit = asked(f"NP Merge step, {number} x {row['network']}", "") if row["limited"] else None
        what, against = f"NP Merge step, {number} x {row['network']}", "fine-tuning by `fit`"
        yield Ratio(what, against, row["seconds"] / row["fine_tuning"], limit, "../learning")


def _layer_groups(results: Path) -> Iterator[Ratio]:
    rows = {row["way"]: row["held"] for row in _rows(results, "layer_groups")}
    whole = rows.pop("the whole at once")
    for way, held in rows.items():
        if held:
            yield Ratio(f"bytes held, {way}", "the whole at once", held / whole, None, "../layer_groups")


def _copies(results: Path) -> Iterator[Ratio]:
    for what, ours, copy in _rows(results, "convert"):
        yield Ratio(what, "a plain copy", ours / copy, asked(what, "a plain copy"), "../convert")


def _recipes(results: Path) -> Iterator[Ratio]:
    content = _rows(results, "mergekit")
    costs = {row["run"]: median([Cost(**turn) for turn in row["turns"]]) for row in content["rows"]}
    page = "../mergekit"
    for method, limit in WALL.items():
        ours, theirs = costs[f"npmerge: {method}"], costs[f"mergekit: {method}"]
        yield Ratio(f"recipe {method}, wall time", "mergekit", ours.wall / theirs.wall, limit, page)
        yield Ratio(f"recipe {method}, peak memory", "mergekit", ours.resident / theirs.resident, 1 / 2, page)
    floor = costs["floor: read and write"].wall
    yield Ratio("recipe linear, wall time", "reading and writing", costs["npmerge: linear"].wall / floor, FLOOR, page)
    above = max(cost.resident for name, cost in costs.items() if name.endswith("64MB")) - costs["npmerge: imports"].resident
    yield Ratio("memory above imports in a budget of 64 MB", f"{IMPORTS_MB} MB", above / IMPORTS_MB, 1.0, page)
    spent = costs["npmerge: help"].user + costs["npmerge: help"].system
    yield Ratio("`npmerge --help`, CPU", f"{HELP:.0f} s", spent / HELP, 1.0, page)
