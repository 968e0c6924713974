"""What a step of learning holds: as `npmerge` predicts it from shapes, and as XLA plans the compiled step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignment.graph import PyTree
from npmerge.fitting.memory import predicted_bytes
from npmerge.fitting.updates import Constants, Run, State, update
from npmerge.sharding import AsGiven


class Bytes(NamedTuple):
    """Of a step: predicted, and planned."""

    predicted: int
    planned: int


def step_bytes(loss: Any, optimizer: optax.GradientTransformation, theta: PyTree, stack: PyTree, batch: tuple) -> Bytes:
    """Both, of `fit(theta, loss, stack, [batch], optimizer, ...)` with held-out batches. Nothing runs."""
    theta, stack, batch = (jax.tree.map(_shape, tree) for tree in (theta, stack, batch))
    predicted = predicted_bytes(loss, optimizer, theta, stack, batch, plan=False).total
    state = jax.eval_shape(lambda x: State(x, optimizer.init(x), jnp.array(True), x), theta)
    fixed = jax.tree.map(lambda _: None, theta)
    step = jax.jit(update, static_argnums=0, donate_argnums=1)
    found = step.lower(Run(loss, optimizer, AsGiven()), state, Constants(fixed, stack), batch, {}).compile().memory_analysis()
    assert found is not None  # on CPUs and accelerators it is there
    sizes = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return Bytes(predicted, int(sizes - found.alias_size_in_bytes))


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x))
