"""Merges of task vectors by their singular vectors: what such methods share."""

import abc
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.checks import check_finite_number
from alignment.graph import PyTree, flatten, path_name
from alignment.names import is_statistic
from npmerge.arithmetic import wide
from npmerge.base import Merge, Stats, check_of_models
from npmerge.linear import constant
from npmerge.stack import Stack


@dataclass(frozen=True)
class Spectral(Merge):
    """base + merged(scale * task vectors) for each matrix, base + scale * mean for the tensors that are none.

    Nonlinear in all models at once, so no choice of coefficients; theta holds the scale of each model's task vector in each
    tensor. What is merged is homogeneous: where all scales are one, it is scale * merged(task vectors). As in the published
    programs a matrix is a tensor of two axes: convolutions, biases and norms are averaged.

    Attributes:
        scale: alpha, 1 by default; the papers search it on validation data.
    """

    scale: float = 1.0
    needs_base = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite_number("scale", self.scale)

    @abc.abstractmethod
    def matrix(self, tau: Float[Array, "models out in"]) -> Float[Array, "out in"]:
        """One task vector of several, as the papers write them: kernels of JAX, (in, out), come transposed."""

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """The scale, one number per model and tensor. Raises ValueError without a base."""
        self.require_base(stack)
        return constant(stack, self.scale)

    def apply(self, theta: PyTree, stack: Stack) -> PyTree:
        """The merged model, in float32 or wider and rounded once; running statistics are averaged.

        Raises:
            ValueError: theta of another number of models (the path is named).
        """

        def vector(path: tuple, scale: Array, x: Array, base: Array) -> Array:
            check_of_models(path_name(path), scale, x)
            return scale.astype(wide(x).dtype) * (wide(x) - wide(base)[None])

        vectors = jax.tree_util.tree_map_with_path(vector, theta, stack.params, stack.base)
        merged = self._merged({path: x for path, x in flatten(vectors).items() if x.ndim == 3 and not is_statistic(path)})

        def leaf(path: tuple, x: Array, base: Array, tau: Array) -> Array:
            name = path_name(path)
            if is_statistic(name):
                return wide(x).mean(0).astype(x.dtype)
            moved = merged[name] if name in merged else tau.mean(0)
            return (wide(base) + moved).astype(x.dtype)

        return jax.tree_util.tree_map_with_path(leaf, stack.params, stack.base, vectors)

    def _merged(self, matrices: dict[str, Array]) -> dict[str, Array]:
        """One task vector of several for each path; those of one shape are merged in one batch."""
        shapes: dict[tuple, list[str]] = {}
        for path, tau in matrices.items():
            shapes.setdefault((tau.shape, tau.dtype), []).append(path)
        found: dict[str, Array] = {}
        with jax.default_matmul_precision("highest"):
            for paths in shapes.values():
                alike = jax.vmap(self.matrix)(jnp.stack([matrices[path].mT for path in paths]))
                found |= dict(zip(paths, alike.mT, strict=True))
        return found


@jax.custom_jvp
def svd(x: Float[Array, "*batch m n"]) -> tuple[Array, Array, Array]:
    """The thin singular value decomposition U (m, k), s (k), V^T (k, n), with finite derivatives.

    Singular vectors of equal values are defined up to a rotation and have no derivatives: those divide by the difference of
    the values. Where it is zero up to rounding the term is left out, which is exact for what treats equal values alike, as
    `polar` does. Terms that divide by values of zero are left out as well.
    """
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    return u, s, vt


@svd.defjvp
def _svd_jvp(primals: tuple, tangents: tuple) -> tuple:
    (x,), (dx,) = primals, tangents
    u, s, vt = svd(x)
    with jax.default_matmul_precision("highest"):
        # U^T dU and V^T dV from U^T dx V: what is symmetric in it turns both alike, what is skew turns them apart
        d = u.mT @ dx @ vt.mT
        alike = (d + d.mT) / 2 * _reciprocal(s[..., None, :] - s[..., :, None], s)
        apart = (d - d.mT) / 2 * _reciprocal(s[..., None, :] + s[..., :, None], s)
        inverse = _reciprocal(s, s)
        du = u @ (alike + apart) + (dx @ vt.mT - u @ d) * inverse[..., None, :]
        dvt = (apart - alike) @ vt + inverse[..., :, None] * (u.mT @ dx - d @ vt)
    return (u, s, vt), (du, jnp.diagonal(d, axis1=-2, axis2=-1), dvt)


def _reciprocal(x: Array, s: Float[Array, "*batch k"]) -> Array:
    """1 / x, and 0 where x is zero up to rounding of the largest singular value."""
    largest = s.max(-1).reshape(s.shape[:-1] + (1,) * (x.ndim - s.ndim + 1))
    small = jnp.abs(x) <= _rounding(x) * largest
    return jnp.where(small, 0, 1 / jnp.where(small, 1, x))


def _rounding(x: Array) -> float:
    """The share of the whole below which a number is zero up to rounding: 16 units of it."""
    return 16 * float(jnp.finfo(x.dtype).eps)


class Triples(NamedTuple):
    """Singular vectors and values side by side, zero where the value is zero up to rounding."""

    u: Float[Array, "out k"]
    s: Float[Array, " k"]
    vt: Float[Array, "k in"]


def leading(x: Float[Array, "models out in"], k: int, size: Float[Array, ""]) -> Triples:
    """The first k singular triples of each matrix, all in one; `size` is the norm that rounding errors are relative to."""
    u, s, vt = svd(x)
    u, s, vt = u.mT[:, :k], s[:, :k], vt[:, :k]
    some = ~(s <= _rounding(s) * size)  # true of NaN, which must not pass for zero
    u, vt = (jnp.where(some[..., None], t, 0).reshape(some.size, t.shape[-1]) for t in (u, vt))
    return Triples(u.T, jnp.where(some, s, 0).ravel(), vt)


def polar(x: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """U V^T of the singular value decomposition: the nearest matrix with orthonormal columns, or rows if it is wide.

    Directions in which x is zero stay zero, so that its zero columns and rows do.
    """
    u, _, vt = leading(x[None], min(x.shape), jnp.linalg.norm(x))
    return u @ vt


def isotropic(triples: Triples) -> Float[Array, "out in"]:
    """U V^T times the mean of the singular values that are not zero."""
    count = jnp.maximum((triples.s > 0).sum(dtype=triples.s.dtype), 1)
    return triples.s.sum() / count * (triples.u @ triples.vt)
