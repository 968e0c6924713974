"""How far apart aligned networks are, or how much they agree, by their weights alone."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.base import Alignment, maps_of
from alignment.graph import Graph, PyTree, weights_of
from alignment.maps import NodeMap, transport


def weight_distance(alignment: Alignment, graph: Graph, theta: PyTree, models: Sequence[PyTree]) -> Float[Array, ""]:
    """Mean over the other models and all weights of (A - T(B))^2, A the reference (Pena et al. 2023).

    Running statistics and integers take no part. Differentiable in theta. Raises ValueError if theta is of another number of
    models.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> a, b = ({"up": jnp.array([w]), "down": jnp.array(w)[:, None]} for w in ([1.0, 2.0, 3.0], [3.0, 1.0, 2.5]))
        >>> graph, matching = alignment.trace(apply, a, jnp.ones((1, 1))), alignment.WeightMatching()
        >>> theta = matching.init(graph, [a, b])
        >>> print(f"{alignment.weight_distance(matching, graph, theta, [a, b]):.3f}")  # 0.5^2 of one weight in three
        0.083
    """
    reference = weights(models[0])
    maps = maps_of(alignment, graph, theta, len(models))
    moved = [weights(transport(graph, m, model)) for m, model in zip(maps[1:], models[1:], strict=True)]
    total = sum((jnp.sum(jnp.square(w - other[path])) for other in moved for path, w in reference.items()), jnp.float32(0))
    return total / max(sum(w.size for w in reference.values()) * len(moved), 1)


def agreement(graph: Graph, push: Mapping[str, Array], ours: PyTree, theirs: PyTree) -> Float[Array, ""]:
    """Sum over tensors of <A, T(B)>: what weight matching maximises. Every pull is the push transposed (*copies, units, units).

    Its derivative by a push says what each unit would be worth at each place, all other nodes as they are; a tensor that
    carries a node on two axes counts for each of them.
    """
    maps = {name: NodeMap(p, jnp.asarray(p).mT) for name, p in push.items()}
    moved, reference = weights(transport(graph, maps, theirs)), weights(ours)
    return sum((jnp.vdot(reference[path], x) for path, x in moved.items()), jnp.float32(0))


agreement_slopes = jax.jit(jax.grad(agreement, argnums=1), static_argnums=0)
"""The derivative of `agreement` by the matrices."""


def weights(model: PyTree) -> dict[str, Array]:
    """The leaves that are weights, by path, as float32: neither running statistics nor integers."""
    return {path: jnp.asarray(x).astype(jnp.float32) for path, x in weights_of(model).items()}
