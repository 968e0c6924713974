"""Networks that are trained side by side are those that are trained one by one."""

import jax
import numpy as np
import optax
import pytest

import npmerge as nm
from npmerge.lora import adapter_tuning, init_adapter
from npmerge.models import Mlp, build

CONFIG = Mlp(4, (5,), 3)
NETWORK = build(CONFIG, seed=0)
LOSS = nm.fine_tuning(NETWORK.apply, nm.CrossEntropy())
RNG = np.random.default_rng(0)
DATA = [(RNG.standard_normal((12, 4)).astype(np.float32), RNG.integers(0, 3, 12)) for _ in range(3)]
STARTS = [build(CONFIG, seed=seed).variables for seed in (0, 1, 1)]
ADAM = optax.adamw(optax.cosine_decay_schedule(0.05, 6))


def sources():
    return [nm.shuffled(*data, 4, seed=k) for k, data in enumerate(DATA)]


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def test_equals_a_loop():
    found = nm.fit_many(nm.stack_models(STARTS).params, LOSS, sources(), ADAM, steps=6)
    models = nm.Stack(found.theta).models()
    for k, (start, source) in enumerate(zip(STARTS, sources(), strict=True)):
        alone = nm.fit(start, LOSS, None, source, ADAM, steps=6)
        close(models[k], alone.theta)
        np.testing.assert_allclose(found.loss[k], alone.history.loss, rtol=1e-5)
    assert np.abs(found.loss[1] - found.loss[2]).max() > 1e-3  # one start, other data


def test_what_is_seen_on_the_way_is_what_fewer_steps_give():
    seen = {}
    theta = nm.stack_models(STARTS).params
    found = nm.fit_many(theta, LOSS, sources(), ADAM, steps=5, every=2, seen=seen.__setitem__)
    assert list(seen) == [0, 2, 4, 5]
    close(seen[0], theta)
    close(seen[2], nm.fit_many(theta, LOSS, sources(), ADAM, steps=2).theta)
    close(seen[5], found.theta)


def test_adapters_of_one_base_equal_a_loop():
    loss, base = adapter_tuning(NETWORK.apply, nm.CrossEntropy()), STARTS[0]
    starts = [init_adapter(base, "kernel", 2, key=jax.random.key(k)) for k in range(3)]
    found = nm.fit_many(nm.stack_models(starts).params, loss, sources(), ADAM, steps=4, stack=base)
    for start, source, theta in zip(starts, sources(), nm.Stack(found.theta).models(), strict=True):
        close(theta, nm.fit(start, loss, base, source, ADAM, steps=4).theta)


def test_one_that_diverges_is_named():
    sources = [[(x, y)] for x, y in DATA]
    sources[1] = [(np.full((12, 4), np.nan, np.float32), DATA[1][1])]
    with pytest.raises(ValueError, match="network 1 diverged at step 1"):
        nm.fit_many(nm.stack_models(STARTS).params, LOSS, sources, ADAM, steps=2)


@pytest.mark.parametrize(
    ("count", "size", "message"),
    [(2, 4, "a source for each of 3 networks, got 2"), (3, 5, "must be of one shape")],
)
def test_what_does_not_go_together(count, size, message):
    given = [nm.shuffled(*data, 4 if k else size, seed=k) for k, data in enumerate(DATA[:count])]
    with pytest.raises(ValueError, match=message):
        nm.fit_many(nm.stack_models(STARTS).params, LOSS, given, ADAM, steps=1)


def test_theta_of_one_network_is_refused():
    with pytest.raises(ValueError, match="theta of many networks has leaves"):
        nm.fit_many(STARTS[0], LOSS, sources(), ADAM, steps=1)
