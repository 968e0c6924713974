"""Which experts are used where: mean weights and their entropy, over data."""

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from alignment.graph import PyTree
from npmerge.batches import measured
from npmerge.masks import counted, examples_in, kept

if TYPE_CHECKING:
    from npmerge.routing.network import RoutedNetwork


class RoutingUsage(NamedTuple):
    """What `RoutedNetwork.usage` finds, as numpy arrays; the weights of single tokens are those of `RoutedNetwork.weights`.

    Attributes:
        blocks: their names, in the order of the network.
        depths: the numbers of the blocks whose experts a block has, its own first.
        weights: the mean weight of each expert, by block, by the depth that it comes from, by model.
        entropy: the mean over the tokens of -sum_k w_k log w_k, in nats: 0 where each has one expert, log of the size of the
            pool where all have the same weight. NaN for weights below zero.
        tokens: how many were weighed in each block; examples where weights are per example.

    Example:
        >>> apply = lambda v, x: x @ v["w"]
        >>> routed = nm.route(apply, [{"w": jnp.eye(2)}, {"w": -jnp.eye(2)}], "w", jnp.eye(2), nm.Router())
        >>> variables = {**routed.variables, "router": {"w/kernel": jnp.array([[9.0, 0.0], [0.0, 0.0]])}}
        >>> usage = routed.apply.usage(variables, [(jnp.eye(2), None)])  # the first of two tokens asks for the first expert
        >>> print(usage.weights.round(2), usage.entropy.round(2), usage.tokens)
        [[[0.75 0.25]]] [0.35] [2]
    """

    blocks: tuple[str, ...]
    depths: Int[np.ndarray, "blocks layers"]
    weights: Float[np.ndarray, "blocks layers models"]
    entropy: Float[np.ndarray, " blocks"]
    tokens: Int[np.ndarray, " blocks"]


def usage_of(network: "RoutedNetwork", variables: PyTree, batches: Iterable[tuple]) -> RoutingUsage:
    """The usage of a routed network; see its method."""
    found: list[dict[str, tuple]] = []
    pools: np.ndarray = np.zeros(0)
    for batch in measured(batches, masks=True):
        pools = np.array(network.plan(batch[0]).pools)
        found.append(jax.device_get(_sums(network, variables, tuple(batch))))
    if not found:
        raise ValueError("usage needs data: got no batches")
    sums = {
        name: [np.sum([batch[name][k] for batch in found], axis=0, dtype=np.float64) for k in range(3)] for name in found[0]
    }
    tokens = np.array([count for _, _, count in sums.values()])
    each = np.maximum(tokens, 1)
    weights = np.stack([w for w, _, _ in sums.values()]) / each[:, None]
    entropy = np.array([e for _, e, _ in sums.values()]) / each
    return RoutingUsage(tuple(sums), pools, weights.reshape(*pools.shape, network.models), entropy, tokens.astype(int))


@functools.partial(jax.jit, static_argnums=0)
def _sums(network: "RoutedNetwork", variables: PyTree, batch: tuple) -> dict[str, tuple[Array, Array, Array]]:
    """For each block the weights and their entropy, summed over what counts of a batch, and how much that is."""
    found, mask = {}, counted(batch)
    order = [block.name for block in network.plan(batch[0]).blocks]
    weights = network.weights(variables, batch[0])
    for name in order:
        w = weights[name]
        w = jnp.broadcast_to(w, (examples_in(batch), *w.shape)) if w.ndim == 1 else w
        counts = kept(mask, w.shape[:-1])
        entropy = -jnp.where(w == 0, 0, w * jnp.log(jnp.where(w == 0, 1, w))).sum(-1)
        places = tuple(range(w.ndim - 1))
        found[name] = (
            jnp.where(counts[..., None], w, 0).sum(places),
            jnp.where(counts, entropy, 0).sum(),
            counts.sum(dtype=jnp.float32),
        )
    return found
