"""Systems solved together against one by one in float64, singular ones and inputs never seen among them."""

import numpy as np
import pytest

from npmerge.quadratics import systems
from npmerge.quadratics.systems import solved
from npmerge.telling import listening
from tests.npmerge.toys import normal


def sides(seed: int, *copies: int, rows: int, samples: int = 9) -> list[np.ndarray]:
    x, y = normal(seed, 2, *copies, samples, rows), normal(seed + 1, 2, *copies, samples, rows)
    return [np.float32(x.swapaxes(-1, -2) @ z) for z in (x, y)]


def test_regular_systems_of_any_shapes():
    several = [sides(1, 2, 3, rows=4), sides(3, rows=4), sides(5, 2, rows=6), sides(7, rows=5)]
    for found, wanted in zip(solved(several, 1e-3), several, strict=True):
        assert not found.singular
        total = wanted[0].astype(np.float64).sum(0)
        held = total + 1e-3 * np.trace(total, axis1=-2, axis2=-1)[..., None, None] / total.shape[-1] * np.eye(total.shape[-1])
        np.testing.assert_allclose(found.shares, np.linalg.solve(held[None, None], np.stack(wanted)), rtol=1e-4, atol=1e-6)


def test_the_operations_it_tells_are_those_of_the_algorithms():
    """Alone: a factor of n^3 / 3 (eigenvectors: 9 n^3) and 2 n^2 a column; together: an inverse, then factors of 2 n^3 / 3."""
    n, columns = 5, 2 * 2 * 5
    alone, two, open_ends = sides(7, rows=n), [sides(k, rows=n) for k in (7, 9)], sides(3, rows=n, samples=1)
    for several, expected in (
        ([alone], n**3 / 3 + 2 * n**2 * columns),
        ([open_ends], 9 * n**3 + 2 * n**2 * columns),
        (two, 2 * (2 * n**3 + 2 / 3 * n**3 + 2 * n**2 * columns)),
    ):
        with listening() as told:
            solved(several, 1e-3)
        assert sum(told) == pytest.approx(expected)


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_a_batch_is_what_each_is_alone(ridge, monkeypatch):
    """Regular, of few samples, of inputs never seen, without any data."""
    few, unseen = sides(3, rows=4, samples=1), sides(5, rows=4)
    for x in unseen:
        x[..., 2, :] = x[..., 2] = 0
    several = [sides(1, 2, rows=4), few, unseen, [0 * x for x in few], sides(7, rows=4)]
    together = solved(several, ridge)
    assert [s.singular for s in together] == [False, True, True, False, False]
    monkeypatch.setattr(systems, "TOGETHER", 0)
    for found, expected in zip(together, solved(several, ridge), strict=True):
        assert found.singular == expected.singular
        np.testing.assert_allclose(found.shares, expected.shares, rtol=1e-5, atol=1e-7)
    assert not np.any(together[3].shares)
