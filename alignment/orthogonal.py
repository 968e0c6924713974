"""The nearest orthogonal matrix: as a differentiable function, and in float64 where singular matrices leave it open."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.custom_jvp
def nearest_orthogonal(matrix: Float[Array, "*copies n n"]) -> Float[Array, "*copies n n"]:
    """The orthogonal factor U V^T of matrix = U S V^T: itself where it is orthogonal already.

    Its derivative is that of the polar decomposition, U [(K - K^T) / (s_i + s_j)] V^T with K = U^T dM V, which unlike that of
    the factors U and V is defined where singular values are equal (Higham 2008, "Functions of Matrices", section 8.4).
    """
    u, _, vt = jnp.linalg.svd(matrix)
    return jnp.matmul(u, vt, precision=jax.lax.Precision.HIGHEST)


@nearest_orthogonal.defjvp
def _derivative(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    u, s, vt = jnp.linalg.svd(primals[0])
    k = u.mT @ tangents[0] @ vt.mT
    inner = (k - k.mT) / jnp.maximum(s[..., :, None] + s[..., None, :], 1e-12)
    return jnp.matmul(u, vt, precision=jax.lax.Precision.HIGHEST), u @ inner @ vt


def polar(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The orthogonal matrix nearest to `matrix`, in float64 on the host.

    Directions with a singular value below 1e-6 of the largest (dead units) leave the factor open. There it takes
    the canonical basis of one null space to that of the other: dead units to dead units in order, the identity where both
    have the same. The result does not depend on the solver.
    """
    u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64))
    rank = int((s > 1e-6 * s.max(initial=0)).sum())
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
