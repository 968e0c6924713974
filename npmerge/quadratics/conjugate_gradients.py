"""Sums of quadratic forms minimised by conjugate gradients: (sum_m C_m) p = sum_m C_m p_m, matrix by matrix.

What an operator sees of its tensor are matrices, one for each linear site and copy. Matrices of equal shape are solved side by
side, each with step lengths of its own; Kronecker products are never formed.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree, flatten, path_name
from alignment.maps import HIGHEST
from alignment.names import is_statistic
from alignment.sites import Use
from npmerge.arithmetic import mean, over_models, ratio
from npmerge.quadratics.operators import Diagonal, Gram, Kronecker, Operator, is_operator

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


class Part(NamedTuple):
    """Matrices that an operator sees of a tensor: of its site, if it has any. Models come once for each use of the weight."""

    name: str
    site: Use | None
    factors: Factors
    models: Float[Array, "models systems rows columns"]
    start: Float[Array, "systems rows columns"]


def minimised(operators: PyTree, models: PyTree, start: PyTree, rule: Rule) -> tuple[PyTree, dict[str, Residuals]]:
    """The minimum as far as the rule goes from `start`, and what is left: of each site, or tensor where there are none.

    Where an operator is the identity that is the mean, after one iteration if any. Running statistics are averaged.

    Args:
        operators: an `Operator` for each leaf of the models.
        models: a tree with leaves (models, ...), in the precision to compute in.
        start: a tree like one of the models.
        rule: when to stop.
    """
    parts, results = [], {}
    leaves = zip(flatten(models).items(), jax.tree.leaves(start), jax.tree.leaves(operators, is_leaf=is_operator), strict=True)
    for (path, x), begin, operator in leaves:
        averaged = rule.iterations > 0 or is_statistic(path)
        results[path] = mean(x) if averaged else begin
        parts += [] if is_statistic(path) else _parts(path, operator, x, begin)
    found = _solved(parts, rule)
    for part, (x, _) in zip(parts, found, strict=True):
        path = part.name if part.site is None else part.site.path
        old = results[path]
        results[path] = x.reshape(old.shape) if part.site is None else _replaced(part.site, old, x)
    merged = jax.tree_util.tree_map_with_path(lambda path, _: results[path_name(path)], start)
    return merged, {part.name: residuals for part, (_, residuals) in zip(parts, found, strict=True)}


def _parts(path: str, operator: Operator, models: Float[Array, "models ..."], start: Float[Array, "..."]) -> list[Part]:
    if isinstance(operator, Diagonal):
        values, x = (a.astype(start.dtype).reshape(len(models), 1, 1, -1) for a in (operator.values, models))
        return [Part(path, None, Factors(diagonal=values), x, start.reshape(1, 1, -1))]
    if isinstance(operator, Gram):
        return [_of_site(site, (g,), models, start) for site, g in zip(operator.sites, operator.grams, strict=True)]
    if isinstance(operator, Kronecker):
        pairs = zip(operator.inputs, operator.gradients, strict=True)
        return [_of_site(site, pair, models, start) for site, pair in zip(operator.sites, pairs, strict=True)]
    return []


def _of_site(site: Use, factors: tuple[Array, ...], models: Array, start: Array) -> Part:
    def flat(x: Array) -> Array:
        return x.astype(start.dtype).reshape(len(x), -1, *x.shape[-2:])

    matrices = flat(jax.vmap(site.matrix)(models))
    matrices = jnp.concatenate([matrices] * (len(factors[0]) // len(models)))  # a weight of several sites: they all add up
    return Part(site.name, site, Factors(None, *map(flat, factors)), matrices, flat(site.matrix(start)[None])[0])


def _replaced(site: Use, leaf: Array, x: Float[Array, "systems rows columns"]) -> Array:
    return site.replaced(leaf, x.reshape(jax.eval_shape(site.matrix, leaf).shape))


def _solved(parts: list[Part], rule: Rule) -> list[tuple[Array, Residuals]]:
    """Those of equal shape together."""
    groups: dict[tuple, list[int]] = {}
    for k, part in enumerate(parts):
        groups.setdefault((jax.tree.structure(part.factors), part.start.shape[1:]), []).append(k)
    found: dict[int, tuple[Array, Residuals]] = {}
    for members in groups.values():
        several = [parts[k] for k in members]
        factors, models = jax.tree.map(lambda *x: jnp.concatenate(x, 1), *((p.factors, p.models) for p in several))
        x, residuals = _side_by_side(factors, models, jnp.concatenate([p.start for p in several]), rule)
        ends = np.cumsum([len(p.start) for p in several])[:-1].tolist()
        each = zip(jnp.split(x, ends), jnp.split(residuals, ends, axis=1), strict=True)
        found |= dict(zip(members, each, strict=True))
    return [found[k] for k in range(len(parts))]


@functools.partial(jax.jit, static_argnums=3)
def _side_by_side(factors: Factors, models: Array, start: Array, rule: Rule) -> tuple[Array, Residuals]:
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
