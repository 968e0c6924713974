"""The rows of a folder, asked for by networks, method and number of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.differences import paired
from experiments.run import points, read_rows


@dataclass(frozen=True)
class Results:
    """What was measured with one set of networks.

    Attributes:
        rows: of these networks, of all seeds.
    """

    rows: tuple[dict[str, Any], ...]

    def of(self, method: str, images: int | None = None, size: float | None = None) -> list[dict[str, Any]]:
        """The rows of a method, over all seeds; of any number of images or size if that is not given."""
        wanted = {"method": method} | {k: v for k, v in {"images": images, "size": size}.items() if v is not None}
        return [row for row in self.rows if all(row[name] == value for name, value in wanted.items())]

    def accuracies(self, method: str, images: int | None = None, size: float | None = None) -> dict[int, float]:
        """Test accuracy by seed."""
        return {row["seed"]: row["accuracy"] for row in self.of(method, images, size)}

    def mean(self, method: str, images: int | None = None, size: float | None = None) -> float:
        """Test accuracy, the mean over seeds; NaN where there is no row."""
        found = list(self.accuracies(method, images, size).values())
        return float(np.mean(found)) if found else float("nan")

    def cell(self, method: str, images: int | None = None, size: float | None = None) -> str:
        """Test accuracy for a table, in percent."""
        found = list(self.accuracies(method, images, size).values())
        return points(found) if found else ""

    def difference(self, method: str, other: str, images: int) -> str:
        """How much better one method is than the other, seed by seed, and whether seeds tell them apart."""
        found = paired([(self.accuracies(method, images), self.accuracies(other, images))])
        return f"{found.told()} ({found.word})" if found else "not both there"

    def images(self, methods: Sequence[str]) -> list[int]:
        """The numbers of images that these methods were tried with."""
        return sorted({row["images"] for row in self.rows if row["method"] in methods})

    @property
    def seeds(self) -> list[int]:
        """All of them."""
        return sorted({row["seed"] for row in self.rows})


def read(folder: Path) -> dict[str, Results]:
    """What was measured, by networks, in the order in which they were merged."""
    rows = read_rows(folder / "rows.csv")
    names = dict.fromkeys(row["networks"] for row in rows)
    return {name: Results(tuple(row for row in rows if row["networks"] == name)) for name in names}
