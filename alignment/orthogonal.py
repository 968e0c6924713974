"""The nearest orthogonal matrix as a differentiable function."""

import jax
import jax.numpy as jnp
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
