"""Laws of the number of models, fitted to what was measured, with the range they were fitted on."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.scaling.results import Results
from experiments.scaling.settings import AVERAGE, CONTROL, ENSEMBLE, FISHER, JOINT, LONG, NONE, PAIRS, REGMEAN, SHORT, Block

POWERS = -np.geomspace(0.05, 3, 200)
HELD = 0.8
"""The share of the variance that a law has to explain."""

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
        explained: the share of the variance of y that it explains, of the logarithm for a law of costs.
        foretold: y at the most models as the law says that is fitted to all fewer ones, divided by the measured one.
        unchanged: the same of the value at the number before, without any law.
    """

    limit: float
    scale: float
    power: float
    low: int
    high: int
    explained: float
    foretold: float
    unchanged: float

    def at(self, models: float) -> float:
        """The value for so many models."""
        return self.limit + self.scale * models**self.power

    @property
    def at_an_end(self) -> bool:
        """Whether the power is the first or last of those that were tried: the law is another one."""
        return self.power in (POWERS[0], POWERS[-1])

    @property
    def holds(self) -> bool:
        """Whether it explains most of what was measured, and foretells better than that nothing changes."""
        better = abs(np.log(max(self.foretold, 1e-9))) < abs(np.log(self.unchanged))
        return self.explained >= HELD and not self.at_an_end and bool(better)


Fit = Callable[[Sequence[int], Sequence[float]], Law]
Try = Callable[[Sequence[int], Sequence[float]], Law | None]


class Fitted(NamedTuple):
    """A law and what it is of."""

    block: Block
    what: str
    method: str
    alignment: str | None
    law: Law

    @property
    def name(self) -> str:
        """Of the row, with its alignment."""
        return self.method if self.alignment is None else f"{self.method}, {self.alignment}"


ERROR, ALIGN, MERGE, PLANNED, PREDICTED = (
    "test error (%)",
    "CPU seconds to align",
    "CPU seconds to merge",
    "planned",
    "predicted",
)


def laws(results: Results) -> Iterator[Fitted]:
    """Of errors of averages, ensembles and what is learned, of seconds and of bytes, block by block."""
    for block in results.blocks:
        averages = [(AVERAGE, alignment) for alignment in block.alignments]
        others = [(m, None) for m in (REGMEAN, FISHER, ENSEMBLE, JOINT, PAIRS, CONTROL, LONG)]
        yield from _fitted(results, block, ERROR, tending, [*averages, *others])
        yield from _fitted(results, block, ALIGN, growing, [way for way in averages if way[1] != NONE])
        yield from _fitted(results, block, MERGE, growing, [(m, None) for m in (AVERAGE, JOINT, PAIRS, SHORT, CONTROL, LONG)])
        for column in (PLANNED, PREDICTED):
            yield from _fitted(results, block, column, linear, [(JOINT, None)])


COLUMNS = {ERROR: "accuracy", ALIGN: "aligning", MERGE: "merging", PLANNED: "planned", PREDICTED: "predicted"}


def _fitted(results: Results, block: Block, what: str, fit: Try, ways: Sequence[tuple[str, str | None]]) -> Iterator[Fitted]:
    for method, alignment in ways:
        curve = results.curve(block, method, alignment, COLUMNS[what])
        if what == ERROR:
            curve = {n: 100 * (1 - x) for n, x in curve.items()}
        law = fit(list(curve), list(curve.values()))
        if law is not None:
            named = f"bytes of a step, {what}" if what in (PLANNED, PREDICTED) else what
            yield Fitted(block, named, method, alignment, law)


def tending(counts: Sequence[int], values: Sequence[float]) -> Law | None:
    """Least squares of limit + scale N^power, the power from -3 to -0.05 and the limit not below zero: of a loss or an error.

    None of fewer than `LEAST` points.
    """
    return _with_foretold(_tending, counts, values)


def growing(counts: Sequence[int], values: Sequence[float]) -> Law | None:
    """Least squares of log y on log N, without a limit: of a cost. None of fewer than `LEAST` points or of zeros."""
    return _with_foretold(_growing, counts, values) if min(values, default=0) > 0 else None


def linear(counts: Sequence[int], values: Sequence[float]) -> Law | None:
    """Least squares of limit + scale N over more than two models, of which pairs may be a special case: of bytes."""
    more = [(n, y) for n, y in zip(counts, values, strict=True) if n > 2]
    return _with_foretold(_linear, [n for n, _ in more], [y for _, y in more])


def _with_foretold(fit: Fit, counts: Sequence[int], values: Sequence[float]) -> Law | None:
    if len(counts) < LEAST:
        return None
    law, fewer = fit(counts, values), fit(counts[:-1], values[:-1])
    return law._replace(foretold=fewer.at(counts[-1]) / values[-1], unchanged=values[-2] / values[-1])


def _tending(counts: Sequence[int], values: Sequence[float]) -> Law:
    n, y = np.asarray(counts, np.float64), np.asarray(values, np.float64)
    found = []
    for power in POWERS:
        limit, scale = np.linalg.lstsq(np.stack([np.ones_like(n), n**power], 1), y, rcond=None)[0]
        if limit < 0:
            limit, scale = 0.0, float(n**power @ y / (n**power @ n**power))
        found.append((float(np.sum((limit + scale * n**power - y) ** 2)), power, limit, scale))
    _, power, limit, scale = min(found)
    return _law(limit, scale, power, counts=counts, y=y, fitted=limit + scale * n**power)


def _growing(counts: Sequence[int], values: Sequence[float]) -> Law:
    n, y = np.log(np.asarray(counts, np.float64)), np.log(np.asarray(values, np.float64))
    power, offset = np.polyfit(n, y, 1)
    return _law(0.0, np.exp(offset), power, counts=counts, y=y, fitted=offset + power * n)


def _linear(counts: Sequence[int], values: Sequence[float]) -> Law:
    n, y = np.asarray(counts, np.float64), np.asarray(values, np.float64)
    scale, limit = np.polyfit(n, y, 1)
    return _law(limit, scale, 1.0, counts=counts, y=y, fitted=limit + scale * n)


def _law(limit: float, scale: float, power: float, *, counts: Sequence[int], y: np.ndarray, fitted: np.ndarray) -> Law:
    spread = float(np.sum((y - y.mean()) ** 2))
    explained = 1 - float(np.sum((fitted - y) ** 2)) / spread if spread else 1.0
    return Law(float(limit), float(scale), float(power), counts[0], counts[-1], explained, float("nan"), float("nan"))
