"""The Sinkhorn operator: from logits to a doubly stochastic matrix, with an implicit derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.checks import check_count

HIGHEST = jax.lax.Precision.HIGHEST


def sinkhorn(logits: Float[Array, "*copies n n"], *, iterations: int = 30) -> Float[Array, "*copies n n"]:
    """The doubly stochastic matrix S_ij = exp(X_ij + f_i + g_j) of logits X: a soft permutation (Sinkhorn 1964).

    It maximises <S, X> + entropy(S), so sinkhorn(X / t) tends to the best assignment of X as the temperature t falls
    (Mena et al. 2018). Columns, then rows are normalised in the log domain: rows sum to 1 up to rounding, columns as far as the
    iterations have converged, which takes more of them at lower temperatures.

    The derivative is that of the fixed point (Eisenberger et al. 2022; Pena et al. 2023, section 3.2), so its cost does not
    depend on the iterations: one system of n unknowns for each copy. It is finite for plans that are 0/1.

    Args:
        logits: X; -inf forbids a place.
        iterations: pairs of normalisations.

    Raises:
        ValueError: logits that are not square, fewer than one iteration; unless traced, NaN, +inf, or a row or column that is
            forbidden as a whole.

    Example:
        >>> logits = jnp.array([[0.0, 3.0], [1.0, 0.0]])
        >>> print(alignment.sinkhorn(logits).round(2))
        [[0.12 0.88]
         [0.88 0.12]]
        >>> print(alignment.sinkhorn(logits / 0.1).round(2))  # cold: nearly the best assignment
        [[0. 1.]
         [1. 0.]]
    """
    check_count("iterations", iterations)
    if logits.ndim < 2 or logits.shape[-1] != logits.shape[-2]:
        raise ValueError(f"sinkhorn needs logits (*copies, n, n), got shape {logits.shape}")
    if not isinstance(logits, jax.core.Tracer):
        _check(np.asarray(logits))
    return _plans(iterations, logits)


@functools.partial(jax.jit, static_argnums=0)
def _plans(iterations: int, logits: Float[Array, "*copies n n"]) -> Float[Array, "*copies n n"]:
    return jnp.vectorize(functools.partial(_plan, iterations), signature="(n,n)->(n,n)")(logits)


def _check(logits: Float[np.ndarray, "*copies n n"]) -> None:
    """Raise ValueError for what would make every entry NaN."""
    if bad := int(np.isnan(logits).sum()):
        raise ValueError(f"sinkhorn needs logits without NaN, got {bad} of {logits.size}")
    if bad := int(np.isposinf(logits).sum()):
        raise ValueError(f"sinkhorn takes -inf for a place that is forbidden, but no +inf: got {bad} of {logits.size}")
    for axis, name in ((-1, "row"), (-2, "column")):
        forbidden = np.argwhere(np.isneginf(logits).all(axis))
        if len(forbidden):
            raise ValueError(f"sinkhorn needs a place for every unit: all of {name} {forbidden[0].tolist()} is -inf")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _plan(iterations: int, x: Float[Array, "n n"]) -> Float[Array, "n n"]:
    def both(g: Float[Array, " n"], _: None) -> tuple[Float[Array, " n"], None]:
        f = -jax.nn.logsumexp(x + g[None], axis=1)
        return -jax.nn.logsumexp(x + f[:, None], axis=0), None

    g, _ = jax.lax.scan(both, -jax.nn.logsumexp(x, axis=0), length=iterations - 1)
    return jax.nn.softmax(x + g[None], axis=1)


def _forward(iterations: int, x: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    plan = _plan(iterations, x)
    return plan, plan


def _backward(iterations: int, s: Float[Array, "n n"], cotangent: Float[Array, "n n"]) -> tuple[Float[Array, "n n"]]:
    """S * (G + a_i + b_j), the projection of S * G onto matrices whose rows and columns sum to zero.

    That is a system of 2n equations in a and b, of rank 2n - 1. Rows of S sum to 1, so a_i = -sum_j S_ij (G_ij + b_j). With
    the first part of a taken into G, what remains is (diag(c) - S^T S) b = -q, where c and q are the column sums of S and
    of S * G.
    """
    g = _centred(cotangent, s)
    b = _solve_laplacian(jnp.matmul(s.T, s, precision=HIGHEST), -(s * g).sum(axis=0))
    return (s * _centred(g + b[None], s),)


def _centred(g: Float[Array, "n n"], s: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Rows less their mean under S, counted from where S is largest: near 0/1 plans nothing then cancels."""
    g = g - jnp.take_along_axis(g, s.argmax(axis=1)[:, None], axis=1)
    return g - (s * g).sum(axis=1, keepdims=True)


def _solve_laplacian(affinity: Float[Array, "n n"], q: Float[Array, " n"]) -> Float[Array, " n"]:
    """Solve (diag(affinity 1) - affinity) b = q, where q sums to zero over each connected part and b is free by a constant.

    Column sums of S^T S are those of S, so this is diag(c) - S^T S, without the difference of nearly equal numbers. Scaled to
    a unit diagonal the matrix has its eigenvalues in [0, 2] however hard the plan is, less a few units of rounding of its
    entries; a ridge above that and above the rounding of a factorisation, which grows with n, holds what is free, and a second
    solve takes its influence on the rest away.
    """
    n, affinity = len(q), affinity * (1 - jnp.eye(len(q), dtype=q.dtype))
    degree = affinity.sum(axis=1)
    root = jnp.where(degree > 0, jax.lax.rsqrt(jnp.where(degree > 0, degree, 1)), 0)
    matrix = jnp.eye(n, dtype=q.dtype) - root[:, None] * affinity * root[None]
    ridge = (n + 8) * jnp.finfo(q.dtype).eps * jnp.eye(n, dtype=q.dtype)
    factor, right = jax.scipy.linalg.cho_factor(matrix + ridge, lower=True), root * q
    y = jax.scipy.linalg.cho_solve(factor, right)
    y = y + jax.scipy.linalg.cho_solve(factor, right - jnp.matmul(matrix, y, precision=HIGHEST))
    return root * y


_plan.defvjp(_forward, _backward)
