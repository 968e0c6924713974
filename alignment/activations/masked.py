"""Features of nodes where some examples, or positions of them, are padding: which sample is whose is known one by one."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignment.activations.taps import capture
from alignment.graph import Graph, PyTree, Signature, as_shapes, signature
from alignment.tracing.trace import walked


def masked_features(
    apply: Callable[..., PyTree], graph: Graph, variables: PyTree, inputs: PyTree, mask: Bool[Array, "examples ..."]
) -> dict[str, tuple[Float[Array, "*copies samples units"], Bool[Array, " samples"]]]:
    """The features of every node with a tap, and which of its samples count. Traceable; the network sees each example alone.

    Raises:
        ValueError: where a batch of one has other nodes, or for a mask whose positions are not those of a node.
    """
    one = jax.eval_shape(lambda x: jax.tree.map(lambda leaf: leaf[:1], x), inputs)
    small = _graph_of_one(apply, signature(variables), signature(one))
    if odd := set(graph.taps) - set(small.taps):
        raise ValueError(f"node {min(odd)!r} is only there for some sizes of a batch: examples must be looked at one by one")

    def alone(example: PyTree) -> dict[str, Array]:
        return capture(apply, small, variables, jax.tree.map(lambda x: x[None], example), nodes=tuple(graph.taps)).nodes

    found = jax.vmap(alone)(jax.tree.map(jnp.asarray, inputs))
    return {node: (_joined(x), _counts(small, node, mask, x.shape[-2]).ravel()) for node, x in found.items()}


@functools.lru_cache(maxsize=32)
def _graph_of_one(apply: Callable[..., PyTree], variables: Signature, inputs: Signature) -> Graph:
    """Some functions are written otherwise for a batch of one."""
    return walked(apply, as_shapes(variables), (as_shapes(inputs),)).graph()[0]


def _joined(x: Float[Array, "examples *copies samples units"]) -> Float[Array, "*copies all units"]:
    x = jnp.moveaxis(x, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _counts(graph: Graph, node: str, mask: Bool[Array, "examples ..."], samples: int) -> Bool[Array, "examples samples"]:
    tap, positions = graph.taps[node], math.prod(mask.shape[1:])
    loops = tap.loops - sum(isinstance(k, int) for k in tap.index)  # that are samples, in front of the others
    if samples == positions**2 and mask.ndim > 1 and not loops:  # of pairs of positions, as heads attend: both have to count
        return (mask[:, :, None] & mask[:, None, :]).reshape(len(mask), samples)
    return counting(f"node {node!r}", mask, samples, loops=loops > 0)


def counting(name: str, mask: Bool[Array, "examples ..."], samples: int, *, loops: bool) -> Bool[Array, "examples samples"]:
    """Which samples of each example count. One that stands for all positions does if any of them does.

    Args:
        name: whose samples they are, for the error.
        mask: which examples, or positions of them, are no padding.
        samples: how many there are of each example.
        loops: whether the steps of loops are among them, in front of the positions.

    Raises:
        ValueError: samples that are not those positions.
    """
    positions = math.prod(mask.shape[1:])
    if samples == 1 or mask.ndim == 1:
        return jnp.broadcast_to(mask.reshape(len(mask), -1).any(1, keepdims=True), (len(mask), samples))
    if samples % positions:
        raise ValueError(
            f"the mask has {positions} positions, but {name} has {samples} samples of an example: they are not those "
            "positions, so it cannot be told which are padding"
        )
    times = samples // positions
    return jnp.tile(mask, (1, times)) if loops else jnp.repeat(mask, times, axis=1)
