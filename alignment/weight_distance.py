"""How far apart aligned networks are, by their weights alone: the data-free loss of learned alignments."""

import re
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.base import Alignment
from alignment.graph import STATISTICS, Graph, PyTree, flatten
from alignment.maps import transport


def weight_distance(alignment: Alignment, graph: Graph, theta: PyTree, models: Sequence[PyTree]) -> Float[Array, ""]:
    """Mean over the other models and all weights of (A - T(B))^2, A the reference (Pena et al. 2023).

    Running statistics and integers take no part. Differentiable in theta.
    """
    reference = weights(models[0])
    maps = alignment.maps(theta, graph)
    moved = [weights(transport(graph, m, model)) for m, model in zip(maps[1:], models[1:], strict=True)]
    total = sum((jnp.sum(jnp.square(w - other[path])) for other in moved for path, w in reference.items()), jnp.float32(0))
    return total / max(sum(w.size for w in reference.values()) * len(moved), 1)


def weights(model: PyTree) -> dict[str, Array]:
    """The leaves that are weights, by path, as float32: neither running statistics nor integers."""
    leaves = {path: x for path, x in flatten(model).items() if not re.search(STATISTICS, path)}
    return {path: x.astype(jnp.float32) for path, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.floating)}
