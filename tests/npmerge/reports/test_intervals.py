"""Intervals against scipy, in float64."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm, sem

from npmerge.reports.intervals import Z, mean, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (3, 10), (292, 359), (999, 1000), (1, 10**6)])
def test_wilson(k, n):
    found, expected = wilson(k, n), binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert found == pytest.approx((k / n, expected.low, expected.high), rel=1e-12, abs=1e-15)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_wilson_of_no_examples():
    with pytest.raises(ValueError, match="an interval needs examples, got 0"):
        wilson(0, 0)


def test_the_mean_and_its_standard_errors():
    values = np.random.default_rng(0).exponential(size=40)
    half = norm.ppf(0.975) * sem(values)
    assert mean(values) == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), rel=1e-12)
    assert norm.ppf(0.975) == pytest.approx(Z, rel=1e-15)


def test_one_value_tells_no_spread():
    assert mean(np.array([2.0])) == (2.0, -math.inf, math.inf)
