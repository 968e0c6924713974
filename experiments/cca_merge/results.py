"""The rows of a folder, asked for by block, method, number of networks and reference."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cca_merge.settings import FIRST, LEVELS, Block
from experiments.differences import Difference, paired
from experiments.run import points, read_rows

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes:
        settings: what it was made with, as `settings.json` has it.
        blocks: those that there are rows of.
        rows: of merges.
        gammas: of the search for gamma.
        spectra: of correlations by layer.
    """

    settings: Row
    blocks: Sequence[Block]
    rows: Sequence[Row]
    gammas: Sequence[Row]
    spectra: Sequence[Row]

    def task(self, name: str) -> Row:
        """By its name."""
        return next(task for task in self.settings["tasks"] if task["name"] == name)

    def title(self, block: Block) -> str:
        """A block, in words."""
        task = self.task(block.task)
        return f"{task['network']} on {task['data']}, {block.split}"

    def groups(self) -> Iterator[tuple[Block, int]]:
        """Each block with each of its numbers of networks."""
        return ((block, n) for block in self.blocks for n in block.counts)

    def group(self, block: Block, models: int) -> str:
        """A group of networks, in words."""
        return f"{self.title(block)}, {models} networks"

    def accuracies(self, block: Block, method: str, models: int, reference: str = FIRST) -> dict[int, float]:
        """Test accuracy by seed."""
        key = {"task": block.task, "split": block.split, "models": models, "method": method}
        key["reference"] = "" if method in LEVELS else reference
        return {row["seed"]: row["accuracy"] for row in self.rows if all(row[name] == x for name, x in key.items())}

    def cell(self, block: Block, method: str, models: int, reference: str = FIRST) -> str:
        """Test accuracy for a table, in percent."""
        found = list(self.accuracies(block, method, models, reference).values())
        return points(found) if found else ""

    def mean(self, block: Block, method: str, models: int, reference: str = FIRST) -> float:
        """Test accuracy, the mean over seeds; NaN where there is no row."""
        found = list(self.accuracies(block, method, models, reference).values())
        return float(np.mean(found)) if found else float("nan")

    def difference(self, method: str, than: str, block: Block, counts: Sequence[int]) -> Difference | None:
        """How much better one method is than another in a block, over numbers of networks that have both."""
        return paired((self.accuracies(block, method, n), self.accuracies(block, than, n)) for n in counts)

    def by_reference(self, method: str, choice: str, block: Block, models: int, than: str = FIRST) -> Difference | None:
        """How much better a method is with one reference than with another."""
        return paired([(self.accuracies(block, method, models, choice), self.accuracies(block, method, models, than))])

    def searched(self, block: Block, models: int) -> dict[int, dict[float, Row]]:
        """The search by seed and gamma, with the first network as the reference, of networks as they are."""
        place = {"task": block.task, "split": block.split, "models": models, "reference": 0, "folded": False}
        found: dict[int, dict[float, Row]] = {}
        for row in self.gammas:
            if all(row[name] == value for name, value in place.items()):
                found.setdefault(row["seed"], {})[row["gamma"]] = row
        return found

    def layers(self, block: Block) -> Iterator[list[Row]]:
        """For each layer, in the order of the network, the rows of correlations over seeds."""
        rows = [row for row in self.spectra if (row["task"], row["split"]) == (block.task, block.split)]
        for depth in sorted({row["depth"] for row in rows}):
            yield [row for row in rows if row["depth"] == depth]

    def seeds(self, block: Block | None = None) -> list[int]:
        """All of them, or those of a block."""
        places = [(row["seed"], row["task"], row["split"]) for row in self.rows]
        return sorted({seed for seed, *place in places if block is None or place == [block.task, block.split]})


def read(folder: Path) -> Results:
    """What was measured, of a folder."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    rows, gammas, spectra = (read_rows(folder / f"{name}.csv") for name in ("rows", "gammas", "spectra"))
    there = {(row["task"], row["split"]) for row in rows}
    blocks = [Block(**block) for block in settings["blocks"]]
    return Results(settings, [b for b in blocks if (b.task, b.split) in there], rows, gammas, spectra)
