"""Conjugate gradients for many systems (sum_m C_m) X = sum_m C_m X_m of one shape side by side, with step lengths of their own.

X are matrices, C_m is diagonal or a product of Kronecker, which is never formed.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.maps import HIGHEST
from npmerge.arithmetic import over_models, ratio

Residuals = Float[Array, "steps systems"]
"""|r| / |sum_m C_m p_m| of each matrix, at the start and after each iteration."""


class Rule(NamedTuple):
    """Stop after so many iterations, or once |r| <= tolerance |sum_m C_m p_m|; divide by diag(sum_m C_m) or not."""

    iterations: int
    tolerance: float
    preconditioned: bool


class Factors(NamedTuple):
    """X_m -> A_m (D_m * X_m) B_m of many matrices for each model; a factor that is None is not there."""

    diagonal: Float[Array, "models systems rows columns"] | None = None
    left: Float[Array, "models systems rows rows"] | None = None
    right: Float[Array, "models systems columns columns"] | None = None

    def __call__(self, x: Float[Array, "_ systems rows columns"]) -> Float[Array, "systems rows columns"]:
        """The sum over the models, of one X for each or the same for all."""
        if self.diagonal is not None:
            x = self.diagonal * x
        if self.left is not None:
            x = jnp.matmul(self.left, x, precision=HIGHEST)
        if self.right is not None:
            x = jnp.matmul(x, self.right, precision=HIGHEST)
        return over_models(x)[0]

    def of_diagonals(self) -> "Factors":
        """Without off-diagonal elements."""
        eyes = self._replace(diagonal=None)
        eyes = jax.tree.map(lambda f: f * jnp.eye(f.shape[-1], dtype=f.dtype)[None, None], eyes)
        return eyes._replace(diagonal=self.diagonal)


@functools.partial(jax.jit, static_argnums=3)
def solved(
    factors: Factors,
    models: Float[Array, "models systems rows columns"],
    start: Float[Array, "systems rows columns"],
    rule: Rule,
) -> tuple[Float[Array, "systems rows columns"], Residuals]:
    """The minima of sum_m (X - X_m)^T C_m (X - X_m) as far as the rule goes from `start`, and what is left."""
    # divided by the largest element of each system, which changes no solution: squares must not underflow
    factors = jax.tree.map(lambda f: ratio(f, jnp.abs(f).max((0, 2, 3), keepdims=True)), factors)
    residual, size = factors(models - start[None]), _square(factors(models))
    inverse = jnp.ones_like(start)
    if rule.preconditioned:
        inverse = ratio(inverse, factors.of_diagonals()(jnp.ones_like(start)[None]))
    if factors.right is None:
        factors = jax.tree.map(over_models, factors)
    change, squares = conjugate_gradients(factors, residual, inverse, rule.tolerance**2 * size, rule.iterations)
    relative = ratio(squares, jnp.broadcast_to(size, squares.shape))[..., 0, 0]
    return start + change, jnp.sqrt(relative)


class _State(NamedTuple):
    """The solution so far, what it leaves, the next direction, and the product of what is left with itself, preconditioned."""

    x: Float[Array, "systems rows columns"]
    r: Float[Array, "systems rows columns"]
    p: Float[Array, "systems rows columns"]
    rz: Float[Array, "systems 1 1"]


def conjugate_gradients(
    factors: Factors,
    residual: Float[Array, "systems rows columns"],
    inverse: Float[Array, "systems rows columns"],
    limit: Float[Array, "systems 1 1"],
    iterations: int,
) -> tuple[Float[Array, "systems rows columns"], Float[Array, "steps systems 1 1"]]:
    """The change X with A X = residual, A the sum of the factors, after so many iterations from zero.

    A system whose square of the residual is at most `limit` stays as it is. The number of iterations is static, so that the
    solution has derivatives; when all systems stay, nothing is computed. 0/0 is zero: where A is, X is.

    Returns:
        X, and the squares of the residuals at the start and after each iteration.
    """

    def step(s: _State) -> _State:
        active = _square(s.r) > limit
        q = factors(s.p[None])
        a = jnp.where(active, ratio(s.rz, _dot(s.p, q)), 0)
        r = s.r - a * q
        rz = _dot(r, inverse * r)
        p = jnp.where(active, inverse * r + ratio(rz, s.rz) * s.p, s.p)
        return _State(s.x + a * s.p, r, p, rz)

    def body(s: _State, _: None) -> tuple[_State, Array]:
        s = jax.lax.cond((_square(s.r) > limit).any(), step, lambda s: s, s)
        return s, _square(s.r)

    first = _State(jnp.zeros_like(residual), residual, inverse * residual, _dot(residual, inverse * residual))
    last, squares = jax.lax.scan(body, first, None, iterations)
    return last.x, jnp.concatenate([_square(residual)[None], squares])


def _dot(a: Array, b: Array) -> Float[Array, "systems 1 1"]:
    return (a * b).sum((1, 2), keepdims=True)


def _square(x: Array) -> Float[Array, "systems 1 1"]:
    return _dot(x, x)
