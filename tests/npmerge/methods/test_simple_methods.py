"""Weighted average, passthrough, NearSwap and Arcee fusion against float64 numpy, written from the formulas."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from npmerge import ArceeFusion, Average, NearSwap, Passthrough, Stack, WeightedAverage, stack_models
from tests.npmerge.toys import normal

TENSORS = [normal(k, 3, 4) for k in range(3)]


def stack(*tensors) -> Stack:
    return stack_models([{"w": jnp.asarray(x, jnp.float32)} for x in tensors])


def close(got, expected):
    np.testing.assert_allclose(got["w"], expected, rtol=1e-5, atol=1e-6)


def test_weighted_average():
    a, b, c = TENSORS
    close(WeightedAverage((1, 2, 5))(stack(a, b, c)), (a + 2 * b + 5 * c) / 8)
    close(WeightedAverage((1, 2, -5), normalise=False)(stack(a, b, c)), a + 2 * b - 5 * c)
    close(WeightedAverage((3, 3, 3))(stack(a, b, c)), Average()(stack(a, b, c))["w"])
    close(WeightedAverage((0, 1))(stack(a, b)), b)


def test_weighted_average_errors():
    with pytest.raises(ValueError, match="WeightedAverage needs one weight per model: got 2 weights for 3 models"):
        WeightedAverage((1, 2))(stack(*TENSORS))
    for weights in ((1, -1), (0.0, 0.0)):
        with pytest.raises(ValueError, match="WeightedAverage needs weights whose sum is not zero"):
            WeightedAverage(weights)(stack(*TENSORS[:2]))
    for bad in ((1.0, float("inf")), (), None, "ab"):
        with pytest.raises(ValueError, match="WeightedAverage needs one finite weight per model"):
            WeightedAverage(bad)
    for weights in ([1, 2], np.array([1, 2])):
        assert hash(WeightedAverage(weights)) == hash(WeightedAverage((1.0, 2.0)))


def test_passthrough():
    close(Passthrough()(stack(TENSORS[0])), TENSORS[0])
    close(Passthrough(-0.5)(stack(TENSORS[0])), -0.5 * TENSORS[0])
    with pytest.raises(ValueError, match="exactly one model, got 3"):
        Passthrough()(stack(*TENSORS))
    with pytest.raises(ValueError, match="scale must be a finite number, got nan"):
        Passthrough(float("nan"))


def test_near_swap():
    a, b, _ = TENSORS
    close(NearSwap(0.3)(stack(a, b)), a + np.clip(b - a, -0.3, 0.3))
    close(NearSwap(100.0)(stack(a, b)), b)
    close(NearSwap(0.5)(stack([1.0, 2.0, 3.0, 0.0], [1.0, 2.25, 9.0, -1.0])), [1.0, 2.25, 3.5, -0.5])


def test_near_swap_errors():
    for t in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"^t must be a finite number above 0"):
            NearSwap(t)
    with pytest.raises(ValueError, match="exactly two models, got 3"):
        NearSwap()(stack(*TENSORS))


def fusion64(base, other):
    """By columns: the softmax runs over the inputs of each output."""
    columns = [np.sum(softmax(q) * np.log(softmax(q) / softmax(p))) for p, q in zip(base.T, other.T, strict=True)]
    importance = np.abs(other - base) * np.array(columns)
    ranked = np.sort(importance.ravel())
    low, middle, high = (ranked[int(q * (ranked.size - 1))] for q in (0.25, 0.5, 0.75))
    mask = importance >= middle + 1.5 * (high - low)
    assert 0 < mask.sum() < mask.size / 2
    return np.where(mask, other, base)


@pytest.mark.parametrize("shape", [(8, 6), (30,), (3, 3, 2, 6)], ids=str)
def test_arcee_fusion(shape):
    base, other = normal(0, *shape), normal(1, *shape)
    columns = (-1, shape[-1]) if len(shape) > 1 else (-1, 1)
    close(ArceeFusion()(stack(base, other)), fusion64(base.reshape(columns), other.reshape(columns)).reshape(shape))


def test_arcee_fusion_in_hand_cases():
    close(ArceeFusion()(stack([0.0, 1, 2, 3, 4, 5], [0.1, 1.1, 2.1, 3.1, 4.1, 9])), [0, 1, 2, 3, 4, 9])
    close(ArceeFusion()(stack(TENSORS[0], TENSORS[0])), TENSORS[0])
    close(ArceeFusion()(stack([2.0], [5.0])), [5.0])  # one number has one probability: no divergence, no threshold
    with pytest.raises(ValueError, match="exactly two models, got 3"):
        ArceeFusion()(stack(*TENSORS))
