"""Orthogonal Procrustes: the rotation of each node that brings the activations closest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.activations.moments import Moments
from alignment.base import check_finite, check_groups
from alignment.graph import Graph
from alignment.maps import Maps, NodeMap, orthogonal, permutation
from alignment.methods.by_activations import ActivationAlignment
from alignment.orthogonal import nearest_orthogonal


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
    """

    approximate: bool = False

    def check(self, graph: Graph, moments: Mapping[str, Moments]) -> None:
        """Raise ValueError naming nodes that rotations do not suit, unless `approximate`."""
        if not self.approximate:
            check_groups(self, graph, rotated(graph, moments), "orthogonal")

    def solve(self, moments: Moments) -> Float[np.ndarray, "units units"]:
        """The rotation."""
        return polar(np.asarray(moments.cross[1])).astype(np.float32)

    def maps(self, theta: list, graph: Graph) -> Sequence[Maps]:
        """Rotations, and permutations of nodes that index others. Raises ValueError unless theta is finite (or traced)."""
        check_finite(theta, "theta")
        return [{node: _map(jnp.asarray(x)) for node, x in model.items()} for model in theta]


def _map(x: Array) -> NodeMap:
    return permutation(x) if jnp.issubdtype(x.dtype, jnp.integer) else orthogonal(nearest_orthogonal(x))


def rotated(graph: Graph, moments: Mapping[str, Moments]) -> list[str]:
    """The nodes with moments that do not index others: those are permuted."""
    indexing = {name for node in graph.nodes.values() for name in node.index}
    return [name for name in moments if name not in indexing]


def polar(matrix: Float[np.ndarray, "n n"], *, tolerance: float = 1e-6) -> Float[np.ndarray, "n n"]:
    """The orthogonal matrix nearest to `matrix`, in float64 on the host.

    Directions with a singular value below `tolerance` times the largest (dead units) leave the factor open. There it takes
    the canonical basis of one null space to that of the other: dead units to dead units in order, the identity where both
    have the same. The result does not depend on the solver.
    """
    u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64))
    rank = int((s > tolerance * s.max(initial=0)).sum())
    factor = u[:, :rank] @ vt[:rank]
    if rank < len(s):
        factor = factor + _canonical_basis(u[:, rank:]) @ _canonical_basis(vt[rank:].T).T
    return factor


def _canonical_basis(basis: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """An orthonormal basis that depends on the space alone: the coordinate axes projected onto it, orthogonalised in order.

    An axis is passed over while less than half the average share of the space lies along it, so rounding changes nothing.
    """
    n, k = basis.shape
    projector, found = basis @ basis.T, np.zeros((n, 0))
    for left in range(k, 0, -1):
        j = int(np.argmax(np.diagonal(projector) >= 0.5 * left / n))
        column = projector[:, j] / np.sqrt(projector[j, j])
        projector = projector - np.outer(column, column)
        found = np.column_stack([found, column])
    return found
