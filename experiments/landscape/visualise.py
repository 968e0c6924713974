"""Activation maximisation: the image that a unit answers to, regularised a little."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from alignment import capture
from alignment.graph import Graph, PyTree
from experiments.landscape.settings import Ascent

Images = Float[Array, "units height width channels"]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def responses(apply: Callable, graph: Graph, node: str, variables: PyTree, images: Images) -> Float[Array, "images units"]:
    """What each unit of a node answers to each image: its activation, a mean over positions."""
    features = capture(apply, graph, variables, images, nodes=[node]).nodes[node]
    return features.reshape(len(images), -1, features.shape[-1]).mean(1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def maximised(
    apply: Callable,
    graph: Graph,
    node: str,
    ascent: Ascent,
    variables: PyTree,
    *,
    units: Int[Array, " units"],
    deviations: Float[Array, " units"],
    start: Images,
    key: Array,
) -> Images:
    """One image for each of some units: what maximises the unit's response in its deviations, less what regularises.

    Adam climbs the sum over images of response / deviation - variation * TV - decay * mean square, the image shifted at random
    in each step, as in Olah et al. 2017 ("Feature Visualization"), who add more.

    Args:
        apply: the network in evaluation mode, which the graph was traced from.
        graph: its graph.
        node: whose units.
        ascent: how.
        variables: of the network.
        units: of the node.
        deviations: of their activations on real images.
        start: where to begin.
        key: of the shifts.
    """
    optimizer = optax.adam(ascent.rate)
    places = jnp.arange(len(units))

    def loss(images: Images, shift: Array) -> Array:
        shifted = jnp.roll(images, shift, axis=(1, 2))
        found = responses(apply, graph, node, variables, shifted)[places, units]
        pixels = jnp.square(images).mean((1, 2, 3))
        return (ascent.variation * variation(images) + ascent.decay * pixels - found / deviations).sum()

    def step(state: tuple, key: Array) -> tuple[tuple, None]:
        images, optimizer_state = state
        shift = jax.random.randint(key, (2,), -ascent.jitter, ascent.jitter + 1)
        gradient = jax.grad(loss)(images, shift)
        with jax.numpy_dtype_promotion("standard"):  # Optax counts in integers
            updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return (optax.apply_updates(images, updates), optimizer_state), None

    (images, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(key, ascent.steps))
    return images


def variation(images: Images) -> Float[Array, " units"]:
    """The total variation of each image: the mean absolute difference of neighbouring pixels, down and across."""
    down, across = jnp.abs(jnp.diff(images, axis=1)), jnp.abs(jnp.diff(images, axis=2))
    return down.mean((1, 2, 3)) + across.mean((1, 2, 3))


def shown(image: np.ndarray) -> np.ndarray:
    """An image for the eye: from its darkest value to its brightest, grey where there is one channel."""
    low, high = image.min(), image.max()
    return np.repeat((image - low) / max(high - low, 1e-9), 3 // image.shape[-1], axis=-1)
