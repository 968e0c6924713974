"""The rows of a folder, asked for by network, and by parent and child."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.differences import Difference, paired
from experiments.run import mean_and_deviation, points, read_rows
from experiments.universal_features.settings import AGAIN, PARENTS

Row = Mapping[str, Any]
BySeed = dict[int, float]


@dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes:
        settings: what it was made with, as `settings.json` has it.
        rows: of networks.
        slerp: over t.
        dictionaries: of autoencoders.
        flows: of features, from a network to another.
        origins: of features of merges.
        contexts: in which features are active.
    """

    settings: Row
    rows: Sequence[Row]
    slerp: Sequence[Row]
    dictionaries: Sequence[Row]
    flows: Sequence[Row]
    origins: Sequence[Row]
    contexts: Sequence[Row]

    @property
    def seeds(self) -> list[int]:
        """All of them."""
        return sorted({row["seed"] for row in self.rows})

    def losses(self, network: str, column: str = "both") -> BySeed:
        """Test loss by seed."""
        return {row["seed"]: row[column] for row in self.rows if row["network"] == network}

    def kept(self, parent: str, child: str, column: str = "persist") -> BySeed:
        """Share of the parent's features that are in the child, by seed."""
        return self._share(parent, child, column, "of_parent")

    def emerged(self, parent: str, child: str) -> BySeed:
        """Share of the child's features that the parent has not."""
        return self._share(parent, child, "emerge", "of_child")

    def of_parents(self, merge: str) -> BySeed:
        """Share of features that a merge keeps, the mean of both parents."""
        each = [self.kept(parent, merge) for parent in PARENTS]
        return {seed: float(np.mean([x[seed] for x in each])) for seed in each[0] if all(seed in x for x in each)}

    def ceiling(self, network: str) -> BySeed:
        """Share of features of one autoencoder that another one of the same network has."""
        return self.kept(network, f"{network}, {AGAIN}")

    def own(self, merge: str) -> BySeed:
        """Of the features that fine-tuning has made, in one parent or the other, the share that a merge keeps."""
        found = {}
        for row in self.origins:
            if row["network"] == merge:
                made = row["own_plays"] + row["own_lua"]
                found[row["seed"]] = (row["own_plays_kept"] + row["own_lua_kept"]) / max(made, 1)
        return found

    def origin(self, merge: str, column: str) -> BySeed:
        """Share of a merge's features by where they come from."""
        return {row["seed"]: row[column] / max(row["features"], 1) for row in self.origins if row["network"] == merge}

    def _share(self, parent: str, child: str, column: str, of: str) -> BySeed:
        rows = [row for row in self.flows if (row["parent"], row["child"]) == (parent, child)]
        return {row["seed"]: row[column] / max(row[of], 1) for row in rows}


def minus(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Seed by seed."""
    return paired([(mine, theirs)])


def percent(values: Mapping[int, float]) -> str:
    """For a table."""
    return points(list(values.values())) if values else ""


def number(values: Mapping[int, float]) -> str:
    """For a table."""
    return mean_and_deviation(list(values.values())) if values else ""


def mean(values: Mapping[int, float]) -> float:
    """Over seeds; NaN for none."""
    return float(np.mean(list(values.values()))) if values else float("nan")


def read(folder: Path) -> Results:
    """What was measured, of a folder."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    names = ("rows", "slerp", "dictionaries", "flows", "origins", "contexts")
    return Results(settings, *(read_rows(folder / f"{name}.csv") for name in names))
