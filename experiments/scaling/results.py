"""The rows of a folder, asked for by block, alignment, method and number of networks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.differences import Difference, paired
from experiments.run import points, read_rows
from experiments.scaling.settings import LEVELS, Block

Row = Mapping[str, Any]

TIMES = ("aligning", "merging")


@dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes:
        settings: what it was made with, as `settings.json` has it.
        blocks: those that there are rows of.
        rows: of merges.
    """

    settings: Row
    blocks: Sequence[Block]
    rows: Sequence[Row]

    def values(self, block: Block, method: str, models: int, alignment: str | None = None, column: str = "accuracy") -> dict:
        """A column by seed; in the block's own alignment if none is named, and without what is empty."""
        where = "" if method in LEVELS else alignment or block.home
        key = {"block": block.name, "models": models, "method": method, "alignment": where}
        found = {row["seed"]: row[column] for row in self.rows if all(row[name] == x for name, x in key.items())}
        return {seed: value for seed, value in found.items() if value != ""}

    def mean(self, block: Block, method: str, models: int, alignment: str | None = None, column: str = "accuracy") -> float:
        """Over seeds; NaN where there is no row."""
        found = list(self.values(block, method, models, alignment, column).values())
        return float(np.mean(found)) if found else float("nan")

    def median(self, block: Block, method: str, models: int, alignment: str | None, column: str) -> float:
        """Over seeds: of times, of which one may be far off; NaN where there is no row."""
        found = list(self.values(block, method, models, alignment, column).values())
        return float(np.median(found)) if found else float("nan")

    def cell(self, block: Block, method: str, models: int, alignment: str | None = None) -> str:
        """Test accuracy for a table, in percent."""
        found = list(self.values(block, method, models, alignment).values())
        return points(found) if found else ""

    def curve(self, block: Block, method: str, alignment: str | None = None, column: str = "accuracy") -> dict[int, float]:
        """The mean over seeds by number of networks, of times the median, where there is one."""
        over_seeds = self.median if column in TIMES else self.mean
        found = {n: over_seeds(block, method, n, alignment, column) for n in block.counts}
        return {n: value for n, value in found.items() if np.isfinite(value)}

    def difference(
        self, block: Block, method: str, than: str, counts: Sequence[int], *, of: str | None = None, over: str | None = None
    ) -> Difference | None:
        """How much more accurate one way is than another, over these numbers of networks; alignments `of` and `over` them."""
        return paired((self.values(block, method, n, of), self.values(block, than, n, over)) for n in counts)

    @property
    def seeds(self) -> list[int]:
        """All of them."""
        return sorted({row["seed"] for row in self.rows})


def read(folder: Path) -> Results:
    """What was measured, of a folder."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    rows = read_rows(folder / "rows.csv")
    there = {row["block"] for row in rows}
    blocks = [Block(**{**block, "counts": tuple(block["counts"])}) for block in settings["blocks"]]
    return Results(settings, [block for block in blocks if block.name in there], rows)
