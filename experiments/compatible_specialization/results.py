"""The rows of a folder, asked for by target, steps and way."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.compatible_specialization.settings import WAYS
from experiments.compatible_specialization.similarity import READ
from experiments.differences import Difference, paired
from experiments.run import mean_and_deviation, read_rows

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes:
        settings: what it was made with, as `settings.json` has it.
        rows: of networks.
        sweeps: of shares.
        cka: between the experts, by block.
        usage: of experts, by block.
        tokens: weights of experts, by block and character.
        home: losses on the domains of the experts.
    """

    settings: Row
    rows: Sequence[Row]
    sweeps: Sequence[Row]
    cka: Sequence[Row]
    usage: Sequence[Row]
    tokens: Sequence[Row] = ()
    home: Sequence[Row] = ()

    @property
    def seeds(self) -> list[int]:
        """All of them."""
        return sorted({row["seed"] for row in self.rows})

    @property
    def targets(self) -> list[str]:
        """Those that there are rows of."""
        return list(dict.fromkeys(row["target"] for row in self.rows))

    @property
    def steps(self) -> list[int]:
        """Of fine-tuning."""
        return sorted({row["steps"] for row in self.rows})

    @property
    def ways(self) -> list[str]:
        """Those that there are rows of, in the order of the settings."""
        return [way for way in WAYS if any(row["way"] == way for row in self.rows)]

    def losses(self, target: str, steps: int, way: str) -> dict[int, float]:
        """Test loss by seed."""
        key = {"target": target, "steps": steps, "way": way}
        return {row["seed"]: row["loss"] for row in self.rows if all(row[name] == x for name, x in key.items())}

    def cell(self, target: str, steps: int, way: str) -> str:
        """Test loss for a table."""
        found = list(self.losses(target, steps, way).values())
        return mean_and_deviation(found) if found else ""

    def gain(self, way: str, than: str, *, steps: Sequence[int] = (), targets: Sequence[str] = ()) -> Difference | None:
        """How much lower the loss of a way is than that of another, over all targets and steps, or some of them."""
        places = [(target, count) for target in (targets or self.targets) for count in (steps or self.steps)]
        return paired((self.losses(*place, than), self.losses(*place, way)) for place in places)

    def change(self, way: str, than: str, *, targets: Sequence[str] = ()) -> Difference | None:
        """How much larger that gain is after the most steps than after the fewest, seed by seed."""
        first, last = min(self.steps), max(self.steps)
        pairs = []
        for target in targets or self.targets:
            late, early = (_minus(self.losses(target, n, than), self.losses(target, n, way)) for n in (last, first))
            pairs.append((late, early))
        return paired(pairs)

    def alike(self, target: str, steps: int, place: str, block: int | None = None) -> dict[int, float]:
        """CKA of the experts by seed: of one block, or the mean over all whose stream has passed a block of the experts."""
        found: dict[int, list[float]] = {}
        alike = 0 if place == READ and any(row["block"] for row in self.cka) else None  # the first reads the same stream
        for row in self.cka:
            wanted = row["block"] != alike if block is None else row["block"] == block
            if (row["target"], row["steps"], row["place"]) == (target, steps, place) and wanted:
                found.setdefault(row["seed"], []).append(row["cka"])
        return {seed: float(np.mean(values)) for seed, values in found.items()}

    def fall(self, place: str) -> Difference | None:
        """How much CKA has changed from the fewest steps to the most."""
        first, last = min(self.steps), max(self.steps)
        return paired((self.alike(t, last, place), self.alike(t, first, place)) for t in self.targets)

    def at_home(self, domain: str, steps: int, network: str) -> dict[int, float]:
        """Loss of the base or of an expert on the domain of an expert, by seed."""
        key = {"domain": domain, "steps": steps, "network": network}
        return {row["seed"]: row["loss"] for row in self.home if all(row[name] == x for name, x in key.items())}

    def mean(self, column: str, way: str) -> float:
        """Of a column over all rows of a way."""
        return float(np.mean([row[column] for row in self.rows if row["way"] == way]))


def read(folder: Path) -> Results:
    """What was measured, of a folder."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return Results(
        settings, *(read_rows(folder / f"{name}.csv") for name in ("rows", "sweeps", "cka", "usage", "tokens", "home"))
    )


def _minus(mine: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    return {seed: mine[seed] - theirs[seed] for seed in mine.keys() & theirs.keys()}
