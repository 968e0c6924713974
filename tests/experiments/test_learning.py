"""Adam whose rate is in its state: as Optax has it, compiled once for all rates."""

import jax.numpy as jnp
import numpy as np
import optax

import npmerge as nm
from experiments.learning import adam

BATCHES = [(jnp.ones((2, 1)), jnp.array([1.0, 3.0]))]
TRACED: list[int] = []


def loss(theta, stack, batch):
    TRACED.append(1)
    return jnp.square(theta["w"] - batch[1]).mean()


def test_it_is_adam_along_a_cosine_and_is_compiled_once():
    theta = {"w": jnp.array([0.0, 5.0])}
    for rate, steps in ((0.1, 7), (0.3, 4)):
        ours, theirs = (
            nm.fit(theta, loss, None, BATCHES, o, steps=7).theta["w"]
            for o in (adam(rate, steps), optax.adam(optax.cosine_decay_schedule(rate, steps)))
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    TRACED.clear()
    nm.fit(theta, loss, None, BATCHES, adam(0.7, 11), steps=3)
    assert not TRACED
