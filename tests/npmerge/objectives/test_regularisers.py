"""Regularisers against float64 numpy, and what they do to a fit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import npmerge as nm
from alignment import Scale
from tests.npmerge.toys import apply, array, batch, float64, variables

MODELS = [variables(k) for k in range(3)]
STACK = nm.stack_models(MODELS, variables(9))
P = variables(7)
X, LABELS = batch(0)


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(float64(tree))])


def test_proximity_is_the_mean_squared_difference():
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *map(float64, MODELS))
    for to, origin in (("mean", mean), ("base", STACK.base), (2, MODELS[2])):
        want = np.square(flat(P) - flat(origin)).mean()
        assert float(nm.Proximity(to)(apply, P, STACK, ())) == pytest.approx(want, rel=1e-5)
    gradient = jax.grad(lambda s: nm.Proximity(1)(apply, P, s, ()))(STACK)
    chex.assert_trees_all_equal(gradient, jax.tree.map(jnp.zeros_like, gradient))


def test_statistics_take_no_part():
    models = [{"params": {"w": array(k, 3)}, "batch_stats": {"mean": array(9 + k, 3)}} for k in range(2)]
    moved = models[0] | {"batch_stats": {"mean": jnp.full(3, 100.0)}}
    assert float(nm.Proximity(0)(apply, moved, nm.stack_models(models), ())) == 0


def test_proximity_refuses_what_is_not_there():
    for wrong in ("start", -1, True, 0.5):
        with pytest.raises(ValueError, match="Proximity is to 'mean', 'base' or the number of a model, got"):
            nm.Proximity(wrong)
    with pytest.raises(ValueError, match="Proximity is to model 3: the stack has the models 0 to 2"):
        nm.Proximity(3).checker(apply, P, STACK, ())
    with pytest.raises(ValueError, match="Proximity is to the base: got none"):
        nm.Proximity("base").checker(apply, P, nm.stack_models(MODELS), ())
    with pytest.raises(ValueError, match="a merge needs the stack"):
        nm.Proximity().checker(apply, P, None, ())


@pytest.mark.parametrize(("granularity", "models"), [(nm.PerModel(), 2), (nm.PerTensor(), 3), (nm.PerParameter(), 2)], ids=str)
def test_equal_shares_are_those_of_the_average(granularity, models):
    stack = nm.stack_models(MODELS[:models])
    merge = nm.Learned(nm.Average(), granularity, nm.Simplex())
    shares, theta = nm.EqualShares(merge), merge.init(stack)
    assert float(shares(theta, stack, ())) == pytest.approx(0, abs=1e-12)
    moved = {name: array(k, *x.shape) for k, (name, x) in enumerate(theta.items())}
    latents = {name: np.asarray(x, np.float64) for name, x in moved.items()}
    if models == 2:
        each = [np.stack([1 / (1 + np.exp(-x[0])), 1 / (1 + np.exp(x[0]))]) for x in latents.values()]
    else:
        each = [np.exp(x) / np.exp(x).sum(0) for x in latents.values()]
    want = np.square(np.concatenate([np.ravel(c) for c in each]) - 1 / models).mean()
    assert float(shares(moved, stack, ())) == pytest.approx(want, rel=1e-5)


def test_equal_shares_of_masked_and_aligned_merges():
    masked = nm.ada_merging(plus_plus=True)
    theta = masked.init(STACK)
    assert float(nm.EqualShares(masked)(theta, STACK, ())) == pytest.approx((0.3 - 1 / 3) ** 2, rel=1e-4)
    graph = nm.trace(apply, MODELS[0], X)
    merge = nm.Learned(nm.Average(), nm.PerTensor(), nm.Free())
    aligned = nm.Aligned(Scale(), merge, graph)
    theta = {"alignment": [], "merge": jax.tree.map(lambda x: x + 0.5, merge.init(STACK))}
    assert float(nm.EqualShares(aligned)(theta, STACK, ())) == pytest.approx(0.25, rel=1e-5)
    for wrong in (nm.Average(), nm.Aligned(Scale(), nm.Average(), graph), None):
        with pytest.raises(ValueError, match="EqualShares is of the coefficients of a Learned merge, got"):
            nm.EqualShares(wrong)


def test_toward_the_start():
    start = {"a": jnp.zeros((2, 3)), "b": array(1, 4), "index": jnp.arange(3)}
    near = nm.TowardStart(start)
    assert near.start["a"].shape == ()  # equal numbers are kept as one
    theta = {"a": array(2, 2, 3), "b": array(3, 4), "index": jnp.arange(3)}
    want = np.square(np.concatenate([np.ravel(float64(theta[k]) - float64(start[k])) for k in "ab"])).mean()
    assert float(near(theta, None, ())) == pytest.approx(want, rel=1e-5)
    assert float(near(start, None, ())) == 0
    assert near != nm.TowardStart(start)  # arrays are not compared
    hash(near)
    with pytest.raises(ValueError, match=r"theta is not like the start at 'b': got \(5,\), expected \(4,\)"):
        near(theta | {"b": jnp.zeros(5)}, None, ())
    with pytest.raises(ValueError, match="theta is not like the start at 'c': got no such leaf"):
        nm.TowardStart(start | {"c": jnp.zeros(1)}).check_theta(theta, None)
    with pytest.raises(ValueError, match="TowardStart takes the theta to start from, got dict without floating-point leaves"):
        nm.TowardStart({})


def test_they_hold_coefficients_back():
    """One task that the first model solves: the more they weigh, the less of the merge is that model's."""
    labels = jnp.argmax(apply(MODELS[0], X), -1).astype(jnp.int32)
    stack = nm.stack_models(MODELS[:2])
    merge = nm.Learned(nm.Average(), nm.PerModel(), nm.Simplex())
    theta, adam, found = merge.init(stack), optax.adam(0.2), {}
    task = nm.weight_space(merge, apply, nm.CrossEntropy())
    losses = {
        "free": task,
        "shares": nm.weighted_sum((task, nm.EqualShares(merge)), (1.0, 100.0)),
        "start": nm.weighted_sum((task, nm.TowardStart(theta)), (1.0, 100.0)),
    }
    for name, loss in losses.items():
        learned = nm.fit(theta, loss, stack, [(X, labels)], adam, steps=60, held_out=[(X, labels)]).theta
        found[name] = float(merge.constraint.forward(learned["all"])[0])
    assert found["free"] > 0.7
    assert max(abs(found["shares"] - 0.5), abs(found["start"] - 0.5)) < 0.05


def test_networks_are_held_near_the_base():
    loss = nm.fine_tuning(apply, nm.Sum((nm.CrossEntropy(), nm.Proximity("base")), (1.0, 100.0)))
    free = nm.fine_tuning(apply, nm.CrossEntropy())
    near, far = (nm.fit(STACK.base, f, STACK, [(X, LABELS)], optax.adam(0.05), steps=30).theta for f in (loss, free))
    distance = [np.square(flat(p) - flat(STACK.base)).mean() for p in (near, far)]
    assert distance[0] < 0.1 * distance[1]
