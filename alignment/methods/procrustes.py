"""Orthogonal Procrustes: the rotation of each node that brings the activations closest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.activations.moments import Moments
from alignment.finite import check_finite
from alignment.graph import Graph
from alignment.maps import Maps, NodeMap, orthogonal, permutation
from alignment.methods.by_activations import ActivationAlignment, check_groups, solved_nodes
from alignment.orthogonal import nearest_orthogonal, polar


@dataclass(frozen=True)
class Procrustes(ActivationAlignment):
    """Rotate each node's features to minimise the squared distance to the reference's, centred.

    The rotation is the polar factor of the cross-covariance (Schoenemann 1966), which is also the limit of `CCA` for large
    gamma. Where the cross-covariance is singular (dead units, fewer samples than units), `polar` completes it. A node that
    indexes others (heads) is permuted. Needs `NodeMoments`.

    Theta is a start for learning: matrices are projected onto the nearest orthogonal ones.

    Attributes:
        approximate: also rotate nodes whose group holds no rotations (units between elementwise nonlinearities). That changes
            what the network computes; afterwards, re-estimate BatchNorm statistics. Otherwise they are refused.

    Example:
        >>> apply = lambda v, x: (x @ v["up"]) @ v["down"]  # nothing between the layers: any rotation will do
        >>> a = {"up": jnp.eye(2), "down": jnp.ones((2, 1))}
        >>> turn = jnp.array([[0.6, -0.8], [0.8, 0.6]])
        >>> b = {"up": jnp.eye(2) @ turn, "down": turn.T @ jnp.ones((2, 1))}
        >>> x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
        >>> graph, rotation = alignment.trace(apply, a, x), alignment.Procrustes()
        >>> stats = nm.collect(apply, graph, [a, b], [(x, None)], rotation.needs)
        >>> aligned = alignment.align(rotation, graph, [a, b], stats=stats)[1]
        >>> np.allclose(aligned["up"], a["up"], atol=1e-3)  # turned back
        True
    """

    approximate: bool = False

    def check(self, graph: Graph, moments: Mapping[str, Moments]) -> None:
        """Raise ValueError naming nodes that rotations do not suit, unless `approximate`."""
        if not self.approximate:
            check_groups(self, graph, solved_nodes(graph, moments), "orthogonal")

    def solve(self, moments: Moments) -> Float[np.ndarray, "units units"]:
        """The rotation."""
        return polar(np.asarray(moments.cross[1])).astype(np.float32)

    def maps(self, theta: list, graph: Graph) -> Sequence[Maps]:
        """Rotations, and permutations of nodes that index others. Raises ValueError unless theta is finite (or traced)."""
        check_finite(theta, "theta")
        return [{node: _map(jnp.asarray(x)) for node, x in model.items()} for model in theta]


def _map(x: Array) -> NodeMap:
    return permutation(x) if jnp.issubdtype(x.dtype, jnp.integer) else orthogonal(nearest_orthogonal(x))
