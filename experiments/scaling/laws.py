"""Laws of the number of models, fitted to what was measured, with the range they were fitted on."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

POWERS = -np.geomspace(0.05, 3, 200)
LEAST = 4
"""Numbers of models that a law is fitted to at least: of three points any law of three numbers is right."""


class Law(NamedTuple):
    """y(N) = limit + scale N^power.

    Attributes:
        limit: what it tends to where the power is negative.
        scale: what is added to it at N = 1.
        power: of N.
        low: the fewest models that it was fitted to.
        high: the most.
        residual: the root of the mean square of what it leaves, in the units of y; of the logarithm for a law of costs.
        foretold: y at the most models as the law says that is fitted to all fewer ones, divided by the measured one.
    """

    limit: float
    scale: float
    power: float
    low: int
    high: int
    residual: float
    foretold: float

    def at(self, models: float) -> float:
        """The value for so many models."""
        return self.limit + self.scale * models**self.power


Fit = Callable[[Sequence[int], Sequence[float]], Law]


def tending(counts: Sequence[int], values: Sequence[float]) -> Law | None:
    """Least squares of limit + scale N^power, the power from -3 to -0.05: of a loss. None of fewer than `LEAST` points."""
    return _with_foretold(_tending, counts, values)


def growing(counts: Sequence[int], values: Sequence[float]) -> Law | None:
    """Least squares of log y on log N, without a limit: of a cost. None of fewer than `LEAST` points or of zeros."""
    return _with_foretold(_growing, counts, values) if min(values, default=0) > 0 else None


def _with_foretold(fit: Fit, counts: Sequence[int], values: Sequence[float]) -> Law | None:
    if len(counts) < LEAST:
        return None
    law, fewer = fit(counts, values), fit(counts[:-1], values[:-1])
    return law._replace(foretold=fewer.at(counts[-1]) / values[-1])


def _tending(counts: Sequence[int], values: Sequence[float]) -> Law:
    n, y = np.asarray(counts, np.float64), np.asarray(values, np.float64)
    found = []
    for power in POWERS:
        design = np.stack([np.ones_like(n), n**power], 1)
        solved = np.linalg.lstsq(design, y, rcond=None)[0]
        found.append((float(np.sqrt(np.mean((design @ solved - y) ** 2))), power, *solved))
    residual, power, limit, scale = min(found)
    return Law(float(limit), float(scale), float(power), int(n[0]), int(n[-1]), residual, float("nan"))


def _growing(counts: Sequence[int], values: Sequence[float]) -> Law:
    n, y = np.log(np.asarray(counts, np.float64)), np.log(np.asarray(values, np.float64))
    power, offset = np.polyfit(n, y, 1)
    residual = float(np.sqrt(np.mean((offset + power * n - y) ** 2)))
    return Law(0.0, float(np.exp(offset)), float(power), int(counts[0]), int(counts[-1]), residual, float("nan"))
