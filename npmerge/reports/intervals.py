"""How sure a measured number is."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Z = 1.959963984540054
"""The normal quantile that leaves 2.5 % on either side: intervals are of 95 %."""


class Interval(NamedTuple):
    """A number and where, with 95 % confidence, what it estimates lies."""

    value: float
    low: float
    high: float


def wilson(successes: float, count: int) -> Interval:
    """Of a fraction of independent examples: the score interval, which is right for few examples and for fractions near 1.

    Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".

    Args:
        successes: how many there were.
        count: of how many examples.

    Raises:
        ValueError: no examples.
    """
    if count < 1:
        raise ValueError(f"an interval needs examples, got {count}")
    p, z2 = successes / count, Z * Z
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = Z / (1 + z2 / count) * math.sqrt(p * (1 - p) / count + z2 / (4 * count * count))
    return Interval(p, min(max(0.0, centre - half), p), max(min(1.0, centre + half), p))


def mean(values: Float[np.ndarray, " n"]) -> Interval:
    """Of independent values: their mean, 1.96 standard errors to either side; of a single one no more than itself."""
    wide = np.asarray(values, np.float64)
    centre = float(wide.mean())
    half = Z * float(wide.std(ddof=1)) / math.sqrt(len(wide)) if len(wide) > 1 else math.inf
    return Interval(centre, centre - half, centre + half)
