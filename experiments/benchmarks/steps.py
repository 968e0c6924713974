"""Steps of learning as they are timed: NP Merge's, and fine-tuning of the same network on the same batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import npmerge as nm
from alignment.graph import PyTree
from npmerge.fitting.updates import Constants, Run, State, partition, update
from npmerge.models import Config, Network, build
from npmerge.objectives import Apply
from npmerge.objectives.base import Loss
from npmerge.sharding import AsGiven

ADAM = optax.adam(1e-3)
NP_MERGE = nm.Learned(nm.Average(), nm.PerParameter(), nm.Simplex())
OBJECTIVE = nm.CrossEntropy()


class Stepping:
    """A step called again and again; its state is donated each time."""

    def __init__(self, step: Callable[[Any], Any], state: Any):
        self.step, self.state = step, state

    def __call__(self) -> Any:
        """The state after it."""
        self.state = self.step(self.state)
        return self.state


def random_batch(config: Config, size: int) -> tuple:
    """Inputs and labels without meaning: of images one label each, of tokens the next one."""
    rng = np.random.default_rng(0)
    if config.input_dtype == "int32":
        tokens = rng.integers(0, config.vocabulary, (size, config.input_shape[0] + 1)).astype(np.int32)  # type: ignore[attr-defined]
        return jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:])
    images = rng.standard_normal((size, *config.input_shape), np.float32)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, 10, size).astype(np.int32))


def merging(config: Config, models: int, batch: tuple) -> Stepping:
    """A step of `fit` on the coefficients of several networks, one for each parameter."""
    stack = nm.stack_models([build(config, seed=k).variables for k in range(models)])
    return _of_fit(nm.weight_space(NP_MERGE, build(config).apply, OBJECTIVE), NP_MERGE.init(stack), stack, batch)


def fine_tuning(config: Config, batch: tuple) -> Stepping:
    """A step of `fit` on the network's own parameters; running statistics stay as they are."""
    network = build(config, seed=1)
    loss = nm.fine_tuning(_with_fixed_statistics(network), OBJECTIVE)
    return _of_fit(loss, network.variables["params"], None, batch)


def plain(config: Config, batch: tuple) -> Stepping:
    """The same by Optax alone: nothing is checked, and no step undone."""
    network = build(config, seed=1)
    apply = _with_fixed_statistics(network)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: tuple, batch: tuple) -> tuple:
        params, moments = state
        gradient = jax.grad(lambda p: OBJECTIVE(apply, p, None, batch))(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = ADAM.update(gradient, moments)
        return optax.apply_updates(params, updates), moments

    params = jax.tree.map(jnp.array, network.variables["params"])
    return Stepping(lambda state: step(state, batch), (params, ADAM.init(params)))


def parameters(config: Config) -> int:
    """How many are learned."""
    return sum(x.size for x in jax.tree.leaves(config.shapes()["params"]))


def more_bytes(models: int, parameters: int) -> int:
    """The least that a step of NP Merge reads and writes beyond one of fine-tuning, all in float32 under Adam.

    Forward it reads N models and R rows of latents (one for two models, else N) and writes the network; backward it reads the
    models, the latents and the network's gradient, and reads two moments and writes three arrays for each row, where
    fine-tuning reads four arrays and writes three: 2 N + 7 R - 5 numbers for each parameter.
    """
    rows = 1 if models == 2 else models
    return 4 * parameters * (2 * models + 7 * rows - 5)


def _with_fixed_statistics(network: Network) -> Apply:
    statistics = network.variables["batch_stats"]
    return lambda params, x: network.apply({"params": params, "batch_stats": statistics}, x)


def _of_fit(loss: Loss, theta: PyTree, stack: nm.Stack | None, batch: tuple) -> Stepping:
    learned, fixed = partition(theta)
    learned, good = (jax.tree.map(jnp.array, learned) for _ in range(2))  # copies, to be donated
    run, constants = Run(loss, ADAM, AsGiven()), Constants(fixed, stack)
    step = run.layout.compiled(update, donated=(1,))
    state = State(learned, ADAM.init(learned), jnp.array(True), good)
    return Stepping(lambda s: step(run, s, constants, batch, {})[0], state)
