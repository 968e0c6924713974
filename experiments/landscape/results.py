"""The rows of a folder, and what they say in numbers."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.differences import Difference, paired
from experiments.landscape.settings import INSIDE, A
from experiments.run import points, read_rows

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """What was measured: the rows of each file, and the settings they were made with."""

    settings: Row
    rows: Sequence[Row]
    lines: Sequence[Row]
    planes: Sequence[Row]
    units: Sequence[Row]
    similarity: Sequence[Row]
    caveats: Sequence[Row]

    @property
    def seeds(self) -> list[int]:
        """All of them."""
        return sorted({row["seed"] for row in self.rows})

    def names(self) -> dict[int, list[str]]:
        """Of the parents, by seed."""
        return {row["seed"]: row["parents"] for row in self.rows}

    def accuracies(self, network: str, column: str = "accuracy") -> dict[int, float]:
        """Of a network on the test set, by seed."""
        return {row["seed"]: row[column] for row in self.rows if row["network"] == network}

    def along(self, alignment: str, measure: Callable[[Row], float]) -> dict[int, float]:
        """Something of the line between the parents, by seed."""
        return {row["seed"]: measure(row) for row in self.lines if row["alignment"] == alignment}

    def barriers(self, alignment: str) -> dict[int, float]:
        """Of the line between the parents, by seed."""
        return self.along(alignment, lambda row: row["barrier"])

    def middle(self, alignment: str, column: str = "loss") -> dict[int, float]:
        """Of the line between the parents half of the way, by seed."""
        return self.along(alignment, lambda row: row[column][len(row[column]) // 2])

    def layers(self) -> list[str]:
        """Those that are compared, in the order of the network."""
        return list(dict.fromkeys(row["node"] for row in sorted(self.similarity, key=lambda row: row["depth"])))

    def alike(self, one: str, other: str, node: str | None = None) -> dict[int, float]:
        """CKA of two networks by seed, of one layer or the mean over all."""
        found: dict[int, list[float]] = {}
        for row in self.similarity:
            if (row["one"], row["other"]) == (one, other) and node in (None, row["node"]):
                found.setdefault(row["seed"], []).append(row["cka"])
        return {seed: float(np.mean(values)) for seed, values in found.items()}

    def visualised(self) -> list[str]:
        """The layers whose units have images, in the order of the network."""
        return [node for node in self.layers() if any(row["node"] == node for row in self.units)]

    def more_by_images(self, network: str, than: str, of: str) -> list[bool]:
        """Of each unit whether one network answers more than another to the image that was found for a third."""
        one, other = INSIDE.index(network), INSIDE.index(than)
        return [row["others"][one] > row["others"][other] for row in self.units if row["network"] == of]

    def of_units(self, network: str, measure: Callable[[Row], float], node: str | None = None) -> dict[int, float]:
        """A mean over units by seed, of one layer or of all."""
        found: dict[int, list[float]] = {}
        for row in self.units:
            if row["network"] == network and node in (None, row["node"]):
                found.setdefault(row["seed"], []).append(measure(row))
        return {seed: float(np.mean(values)) for seed, values in found.items()}


def by_images(
    results: Results, network: str, node: str | None = None, *, of: str = A, column: str = "others"
) -> dict[int, float]:
    """What a network answers to the images that were found for another, as a fraction of what that one does, by seed.

    A ratio of means over units of one layer or of all, each unit in the deviations that it has on real images.

    Args:
        results: of which.
        network: that is asked.
        node: the layer.
        of: for which the images were found.
        column: "others" for the units whose images they are, "chance" for other units.
    """
    theirs = results.of_units(of, lambda row: row[column][INSIDE.index(network)], node)
    own = results.of_units(of, lambda row: row["reached"], node)
    return {seed: theirs[seed] / own[seed] if own[seed] > 0 else float("nan") for seed in own}


def minus(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Seed by seed."""
    return paired([(mine, theirs)])


def percent(values: Mapping[int, float]) -> str:
    """For a table."""
    return points(list(values.values())) if values else ""


def mean(values: Mapping[int, float]) -> float:
    """Over seeds."""
    return float(np.mean(list(values.values()))) if values else float("nan")


def number(values: Mapping[int, float]) -> str:
    """For a table: mean and deviation over seeds."""
    found = list(values.values())
    if not found:
        return ""
    return f"{np.mean(found):.3f}" + (f" ± {np.std(found, ddof=1):.3f}" if len(found) > 1 else "")


def read(folder: Path) -> Results:
    """What was measured, of a folder."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    names = ("rows", "lines", "planes", "units", "similarity", "caveats")
    return Results(settings, *(read_rows(folder / f"{name}.csv") for name in names))
