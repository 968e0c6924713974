"""Normal equations of known eigenvalues: which directions are solved for, and what counts as never seen."""

import numpy as np
import pytest

from npmerge.quadratics.regularised import SINGULAR, regularised
from tests.npmerge.toys import normal

VECTORS = np.linalg.qr(normal(0, 4, 4))[0]
WANTED = normal(1, 4, 3)
LEAST = 1.5 * SINGULAR  # an eigenvalue that sums in float32 still tell from zero, beside one of 1
ROUNDING = SINGULAR / 2  # of four eigenvalues with the sum 1: a ridge above it holds what was never seen

CASES = {  # eigenvalues, ridge, which of the directions are solved for, whether it is singular
    "regular": ((4, 2, 1, 0.5), 0.0, (1, 1, 1, 1), False),
    "regular with a ridge": ((4, 2, 1, 0.5), 0.3, (1, 1, 1, 1), False),
    "nearly singular": ((1, 1, 1, 1e-4), 0.0, (1, 1, 1, 1), False),
    "never seen": ((4, 2, 1, 0), 0.0, (1, 1, 1, 0), True),
    "never seen, but held": ((4, 2, 1, 0), 0.3, (1, 1, 1, 1), True),
    "rounding instead of zero": ((1, 1, 1, 1e-8), 0.0, (1, 1, 1, 0), True),
    "rounding of the largest": ((1, 1e-3, 1e-8, 0), 0.0, (1, 1, 0, 0), True),
    "negative by rounding": ((1, 1, 1, -1e-8), 0.0, (1, 1, 1, 0), True),
    "a ridge too small to hold": ((1 - LEAST, LEAST, 0, 0), 0.9 * ROUNDING, (1, 1, 0, 0), True),
    "a ridge that just holds": ((1 - LEAST, LEAST, 0, 0), 1.1 * ROUNDING, (1, 1, 1, 1), True),
    "no sum of squares": ((1, 1, 1, -0.1), 0.01, (1, 1, 1, 0), True),
}


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("name", CASES)
def test_the_least_norm_along_what_was_seen(name, scale):
    values, ridge, seen, singular = CASES[name]
    values, ridge = [scale * v for v in values], scale * ridge
    found, vague = regularised((VECTORS * np.array(values)) @ VECTORS.T, WANTED, ridge)
    inverse = [s / (v + ridge) if s else 0 for v, s in zip(values, seen, strict=True)]
    expected = (VECTORS * np.array(inverse)) @ VECTORS.T @ WANTED
    assert vague is singular
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7 * np.abs(expected).max())


def test_fewer_samples_than_rows_are_singular_whatever_rounding_makes_of_them():
    gram = (VECTORS * np.array([1, 1, 1, 1e-4])) @ VECTORS.T
    found, vague = regularised(gram, WANTED, 0.0, few=True)
    assert vague
    np.testing.assert_allclose(found, np.linalg.solve(gram, WANTED), rtol=1e-6)
