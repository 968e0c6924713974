"""Differences between rows, seed by seed, and what they say."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

READING = """A deviation is over seeds (n - 1). "Higher" and "lower" are said where the 95 % interval of the mean paired
difference over seeds (Student's t) leaves out zero, "not told apart" where it does not; a difference of several points of the
factorial is their mean for each seed."""


class Difference(NamedTuple):
    """A difference for each seed, each the mean over all points of the factorial that both sides have.

    Attributes:
        values: by seed.
        points: how many points of the factorial they are means over.
    """

    values: tuple[float, ...]
    points: int

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    @property
    def verdict(self) -> int:
        """1 or -1 where the interval of 95 % (Student's t over seeds) is above or below zero, else 0; 0 for one seed."""
        if len(self.values) < 2:
            return 0
        low, high = self.interval
        return int(low > 0) - int(high < 0)

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 % for the mean (Student's t over seeds), of two seeds or more."""
        count = len(self.values)
        half = float(stats.t.ppf(0.975, count - 1) * np.std(self.values, ddof=1) / np.sqrt(count))
        return self.mean - half, self.mean + half

    @property
    def word(self) -> str:
        """What it says."""
        if len(self.values) < 2:
            return "one seed"
        return {1: "higher", -1: "lower", 0: "not told apart"}[self.verdict]

    def told(self, *, scale: float = 100, unit: str = " points", digits: int = 2) -> str:
        """Mean and deviation over seeds, with signs."""
        values = [scale * x for x in self.values]
        spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):+.{digits}f}{spread}{unit}"


def settings_told(found: Sequence[Difference], sign: int) -> str:
    """In how many settings a difference is as expected; those of one seed tell nothing and are counted apart.

    Args:
        found: one of each setting.
        sign: 1 if higher is expected, -1 if lower, 0 for a question.
    """
    told = [x for x in found if len(x.values) > 1]
    counts = {verdict: sum(x.verdict == verdict for x in told) for verdict in (1, -1, 0)}
    same = f"not told apart in {counts[0]} of {len(told)}"
    if len(told) < len(found):
        same += f", and {len(found) - len(told)} of one seed"
    if sign:
        return f"so in {counts[sign]}, the opposite in {counts[-sign]}, {same}"
    return f"higher in {counts[1]}, lower in {counts[-1]}, {same}"


JUDGED = ("", "difference", "lowest", "highest", "higher", "lower", "not told apart", "above zero")
"""The header of a table of what is asked."""

JUDGING = """The lowest and the highest are the settings with the lowest and the highest mean difference, in points of accuracy;
settings that are higher, lower or not told apart are counted, and what is above zero over settings and seeds."""


def judged(asked: str, difference: str, found: Mapping[str, Difference]) -> tuple[str, ...]:
    """A row of such a table; what one seed says is no verdict.

    Args:
        asked: or expected, and by whom.
        difference: what is subtracted from what.
        found: by the name of the setting, one at least.
    """
    ranked = [name for _, name in sorted((x.mean, name) for name, x in found.items())]
    ends = (f"{found[name].told(unit='')} ({name})" for name in (ranked[0], ranked[-1]))
    told = [x for x in found.values() if len(x.values) > 1]
    verdicts = (str(sum(x.verdict == verdict for x in told)) if told else "" for verdict in (1, -1, 0))
    above = [value > 0 for x in found.values() for value in x.values]
    return asked, difference, *ends, *verdicts, f"{sum(above)} of {len(above)}"


def ranged(found: Mapping[str, Difference]) -> str:
    """From the lowest of some settings to the highest, with their names.

    Args:
        found: by the name of the setting.
    """
    low, high = (pick(found, key=lambda name: found[name].mean) for pick in (min, max))
    if low == high:
        return f"{found[low].told()} ({low})"
    return f"from {found[low].told()} ({low}) to {found[high].told()} ({high})"


def paired(pairs: Iterable[tuple[Mapping[int, float], Mapping[int, float]]]) -> Difference | None:
    """How much the first of each pair has beyond the second, by seed, over all pairs; None where no seed has both.

    Args:
        pairs: of values by seed, one pair for each point of a factorial.
    """
    found: dict[int, list[float]] = {}
    points = 0
    for mine, theirs in pairs:
        shared = mine.keys() & theirs.keys()
        points += bool(shared)
        for seed in shared:
            found.setdefault(seed, []).append(mine[seed] - theirs[seed])
    return Difference(tuple(float(np.mean(found[seed])) for seed in sorted(found)), points) if found else None
