"""Karcher mean, multi-slerp, MLERP and NuSLERP against float64 numpy on the tensors themselves, written from the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from npmerge import Free, KarcherMean, Learned, Mlerp, MultiSlerp, NuSlerp, PerTensor, Slerp, Stack, stack_models
from npmerge.methods import karcher_mean
from tests.npmerge.toys import normal

WEIGHTS = (0.5, 0.2, 0.3)
TENSORS = [normal(k, 3, 4) + 0.5 * k for k in range(3)]
BASE = normal(7, 3, 4)
MEANS = (KarcherMean, MultiSlerp, Mlerp)


def stack(*tensors, base=None) -> Stack:
    models = [{"w": jnp.asarray(x, jnp.float32)} for x in tensors]
    return stack_models(models, None if base is None else {"w": jnp.asarray(base, jnp.float32)})


def close(got, expected):
    np.testing.assert_allclose(got["w"], expected, rtol=2e-5, atol=2e-6)


def unit(x):
    return x / np.linalg.norm(x)


def mean_norm(tensors, weights):
    return sum(w * np.linalg.norm(x) for w, x in zip(weights, tensors, strict=True))


def slerp64(a, b, t):
    omega = np.arccos(np.sum(unit(a) * unit(b)))
    return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)


def test_karcher_mean_is_the_direction_nearest_to_all():
    """Its sum of squared angles is what a general optimiser finds, from another start."""
    units = [unit(x).ravel() for x in TENSORS]

    def energy(v):
        return sum(w * np.arccos(unit(v) @ u) ** 2 for w, u in zip(WEIGHTS, units, strict=True))

    best = minimize(energy, units[0] + 0.1, tol=1e-12)
    merged = KarcherMean(WEIGHTS)(stack(*TENSORS))
    close(merged, unit(best.x).reshape(3, 4) * mean_norm(TENSORS, WEIGHTS))
    got = np.asarray(merged["w"], np.float64).ravel()
    tangent = sum(
        w * (np.arccos(unit(got) @ u) / np.sin(np.arccos(unit(got) @ u))) * (u - (unit(got) @ u) * unit(got))
        for w, u in zip(WEIGHTS, units, strict=True)
    )
    assert np.linalg.norm(tangent) < 1e-6


def test_karcher_mean_of_two_is_the_slerp_of_their_directions():
    a, b, _ = TENSORS
    for share in (0.5, 0.8):
        expected = slerp64(unit(a), unit(b), 1 - share) * mean_norm([a, b], [share, 1 - share])
        close(KarcherMean((share, 1 - share))(stack(a, b)), expected)


def test_karcher_mean_does_not_see_how_much_weight_has_no_direction():
    """A tensor of zeros with nearly all of the weight: the direction is that of the others, found in as few steps."""
    merged = KarcherMean((*WEIGHTS, 999))(stack(*TENSORS, np.zeros((3, 4))))
    close(merged, np.asarray(KarcherMean(WEIGHTS)(stack(*TENSORS))["w"]) / 1000)


def test_multi_slerp():
    direction = unit(sum(w * unit(x) for w, x in zip(WEIGHTS, TENSORS, strict=True)))
    close(MultiSlerp(WEIGHTS)(stack(*TENSORS)), direction * mean_norm(TENSORS, WEIGHTS))
    close(MultiSlerp(WEIGHTS)(stack(*TENSORS, base=BASE)), direction * mean_norm(TENSORS, WEIGHTS))
    taus = [x - BASE for x in TENSORS]
    direction = unit(sum(w * unit(x) for w, x in zip(WEIGHTS, taus, strict=True)))
    expected = BASE + direction * mean_norm(taus, WEIGHTS)
    close(MultiSlerp(WEIGHTS, task_vectors=True)(stack(*TENSORS, base=BASE)), expected)


def test_multi_slerp_is_the_tangent_construction():
    """Project to the tangent space at the mean direction, average there, map back: nothing moves."""
    units = [unit(x) for x in TENSORS]
    mean = unit(sum(units))
    tangent = sum(u - np.sum(u * mean) * mean for u in units) / 3
    size = np.linalg.norm(tangent)
    result = np.cos(size) * mean + np.sinc(size / np.pi) * tangent
    close(MultiSlerp()(stack(*TENSORS)), result * mean_norm(TENSORS, [1 / 3] * 3))


def test_mlerp():
    average = sum(w * x for w, x in zip(WEIGHTS, TENSORS, strict=True))
    close(Mlerp(WEIGHTS)(stack(*TENSORS)), unit(average) * mean_norm(TENSORS, WEIGHTS))


@pytest.mark.parametrize("mean", MEANS, ids=lambda m: m.__name__)
def test_means_in_hand_cases(mean):
    close(mean()(stack([3.0, 0.0], [0.0, 3.0])), np.array([3.0, 3.0]) / np.sqrt(2))  # the length is kept
    close(mean((1, 1, 2))(stack([1.0, 2.0], [2.0, 4.0], [3.0, 6.0])), np.array([2.25, 4.5]))  # one direction
    close(mean((2, 2))(stack([3.0, 4.0], [0.0, 0.0])), np.array([1.5, 2.0]))  # no direction, but a length
    close(mean((1, 0))(stack([0.0, 0.0], [3.0, 4.0])), np.zeros(2))
    close(mean()(stack([0.0, 0.0], [0.0, 0.0])), np.zeros(2))
    close(mean((3, 1))(stack([2.0], [-2.0])), np.array([1.0]))  # a number has no direction
    close(mean()(stack(TENSORS[0])), TENSORS[0])


@pytest.mark.parametrize("mean", MEANS, ids=lambda m: m.__name__)
def test_learning_starts_at_a_spherical_mean(mean):
    models = stack(*TENSORS)
    learned = Learned(mean(WEIGHTS), PerTensor(), Free())
    theta = learned.init(models)
    assert theta["w"].shape == (3,)
    close(learned.apply(theta, models), mean(WEIGHTS)(models)["w"])
    gradient = jax.grad(lambda theta: learned.apply(theta, models)["w"].sum())(theta)
    np.testing.assert_allclose(gradient["w"], [x.sum() for x in TENSORS], rtol=1e-4)


def test_nu_slerp():
    a, b, _ = TENSORS
    close(NuSlerp((3, 1))(stack(a, b)), slerp64(a, b, 0.25))
    close(NuSlerp((2, -1))(stack(a, b)), slerp64(a, b, -1.0))  # beyond the first model
    close(NuSlerp((3, 1), task_vectors=True)(stack(a, b, base=BASE)), BASE + slerp64(a - BASE, b - BASE, 0.25))
    columns = np.stack([slerp64(a[:, k], b[:, k], 0.25) for k in range(4)], 1)
    close(NuSlerp((3, 1), per_channel=True)(stack(a, b)), columns)
    close(NuSlerp((3, 1), per_channel=True)(stack(a[0], b[0])), slerp64(a[0], b[0], 0.25))  # one axis: one vector


def test_nu_slerp_is_slerp_but_where_tensors_are_nearly_parallel():
    a, b, _ = TENSORS
    close(NuSlerp((3, 1))(stack(a, b)), Slerp(0.25)(stack(a, b))["w"])
    close(NuSlerp((3, 1))(stack(a, 3 * a)), 1.5 * a)
    near = np.array([1.0, 0.01]), np.array([2.0, -0.02])
    close(NuSlerp((3, 1))(stack(*near)), slerp64(*near, 0.25))
    channels = np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[3.0, 5.0], [6.0, 7.0]])  # parallel; zero and not
    close(NuSlerp((3, 1), per_channel=True)(stack(*channels)), 0.75 * channels[0] + 0.25 * channels[1])


@pytest.mark.parametrize("merge", [NuSlerp(), NuSlerp(per_channel=True), *(m() for m in MEANS)], ids=str)
def test_opposite_tensors_are_refused(merge):
    a = np.array([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match=f"{type(merge).__name__} is undefined for opposite tensors, as those at 'w' are"):
        merge(stack(a, -a))


def test_directions_without_a_mean_are_refused():
    star = [np.array([np.cos(x), np.sin(x)]) for x in 2 * np.pi / 3 * np.arange(3)]
    for merge in (KarcherMean(), MultiSlerp(), Mlerp()):
        with pytest.raises(ValueError, match="undefined for opposite tensors"):
            merge(stack(*star))


def test_a_mean_that_is_not_found_is_said(monkeypatch):
    monkeypatch.setattr(karcher_mean, "STEPS", 1)
    with pytest.raises(ValueError, match="KarcherMean is undefined for the tensors at 'w': they are too far apart for a mean"):
        KarcherMean()(stack(*TENSORS))


def test_errors():
    for method in (*MEANS, NuSlerp):
        with pytest.raises(ValueError, match=f"{method.__name__} needs one weight per model: got 3 weights for 2 models"):
            method((1, 2, 3))(stack(*TENSORS[:2]))
        for bad in ((1.0, float("nan")), (), 0.5, (1.0, "a")):
            with pytest.raises(ValueError, match=f"{method.__name__} needs one finite weight per model"):
                method(bad)
    for method in (MultiSlerp, Mlerp, NuSlerp):
        with pytest.raises(ValueError, match=f"{method.__name__} needs weights whose sum is not zero"):
            method((1, -1))(stack(*TENSORS[:2]))
    with pytest.raises(ValueError, match="KarcherMean needs weights of 0 or more"):
        KarcherMean((1, -1))
    with pytest.raises(ValueError, match="exactly two models, got 3"):
        NuSlerp()(stack(*TENSORS))
    for method in (MultiSlerp, NuSlerp):
        with pytest.raises(ValueError, match=f"{method.__name__} needs a base"):
            method(task_vectors=True)(stack(*TENSORS))
