"""Model Stock against float64 numpy, written from the formula, and its hand cases."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from npmerge import ModelStock, Stack, stack_models
from tests.npmerge.toys import normal

BASE = normal(7, 3, 4)
TENSORS = [BASE + normal(k, 3, 4) + 1 for k in range(3)]


def stack(base, *tensors) -> Stack:
    models = [{"w": jnp.asarray(x, jnp.float32)} for x in tensors]
    return stack_models(models, {"w": jnp.asarray(base, jnp.float32)})


def close(got, expected):
    np.testing.assert_allclose(got["w"], expected, rtol=1e-5, atol=2e-6)


def model_stock64(base, *tensors):
    taus = [x - base for x in tensors]
    cosines = [np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.combinations(taus, 2)]
    n, cosine = len(taus), np.mean(cosines)
    assert cosine > 0.05
    t = n * cosine / (1 + (n - 1) * cosine)
    return t * np.mean(tensors, 0) + (1 - t) * base


@pytest.mark.parametrize("n", [2, 3])
def test_model_stock(n):
    close(ModelStock()(stack(BASE, *TENSORS[:n])), model_stock64(BASE, *TENSORS[:n]))


def test_model_stock_by_channel():
    columns = [model_stock64(*(x[:, k] for x in (BASE, *TENSORS))) for k in (0, 1)]
    merged = ModelStock(per_channel=True)(stack(BASE[:, :2], *(x[:, :2] for x in TENSORS)))
    close(merged, np.stack(columns, 1))
    one_axis = [x.ravel() for x in (BASE, *TENSORS)]
    close(ModelStock(per_channel=True)(stack(*one_axis)), model_stock64(*one_axis))


def test_model_stock_in_hand_cases():
    base = np.array([1.0, 1.0])

    def at(*offset):
        return base + np.array(offset)

    close(ModelStock()(stack(base, at(1, 0), at(0, 2))), base)  # orthogonal
    close(ModelStock()(stack(base, at(1, 2), at(3, 6))), at(2, 4))  # one direction
    close(ModelStock()(stack(base, at(1, 0), at(-1, 1))), base)  # an obtuse angle: no further than the base
    close(ModelStock()(stack(base, at(1, 0), at(-1, 0))), base)
    close(ModelStock()(stack(base, base, base)), base)
    close(ModelStock()(stack(base, base, at(1, 0))), base)  # no change agrees with nothing
    close(ModelStock()(stack([0.0], [1.0], [-3.0])), [-1.0])  # numbers have no angle: the mean


def test_model_stock_is_the_point_of_the_segment_nearest_to_the_centre():
    """The paper's geometry: N models on a sphere around a centre, offsets orthogonal to each other and to the way there."""
    n, far, radius = 3, 2.0, 0.7
    centre = far * np.eye(8)[0]
    models = [centre + radius * np.eye(8)[1 + k] for k in range(n)]
    mean = np.mean(models, 0)
    t = mean @ centre / (mean @ mean)
    close(ModelStock()(stack(np.zeros(8), *models)), t * mean)


def test_model_stock_errors():
    with pytest.raises(ValueError, match="ModelStock needs a base"):
        ModelStock()(Stack(stack(BASE, *TENSORS).params))
    with pytest.raises(ValueError, match="two models or more, got 1"):
        ModelStock()(stack(BASE, TENSORS[0]))
