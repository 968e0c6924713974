"""Merges that minimise a sum of quadratic forms, argmin_p sum_m (p - p_m)^T C_m (p - p_m), tensor by tensor.

C_m is the identity (the average), diagonal (Fisher), the Gram matrix of what a weight reads (RegMean) or a Kronecker product
with that of the gradients at what it makes (MaTS). The minimum is linear in the models,

    p = mean + sum_m S_m (p_m - mean)   with shares   S_m = (sum_k C_k)^+ C_m,

so where they can be written down, shares are what `init` finds, on the host in float64, and `weigh` is the merge: cheap,
differentiable and exact where all models agree. Directions that no C_m has stay at the mean.
"""

import abc
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree, flatten, path_name
from alignment.lookups import Lookup
from alignment.maps import HIGHEST
from alignment.names import is_statistic
from alignment.sites import Use
from npmerge.arithmetic import mean, wide
from npmerge.base import Merge, check_of_models
from npmerge.stack import Stack


class Operator(abc.ABC):
    """A linear map of one tensor for each model: `operator(x)` is C_m x_m. A tree of arrays; sites are static."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        """One tensor for each model in, one for each out, in the dtype of x."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Identity(Operator):
    """C_m = I: of tensors without statistics, which are averaged."""

    def __call__(self, x: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        """X itself."""
        return x


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Diagonal(Operator):
    """C_m = diag(values_m)."""

    values: Float[Array, "models ..."]

    def __call__(self, x: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        """Elementwise."""
        return self.values.astype(x.dtype) * x


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Gram(Operator):
    """W -> G_m W at each linear site of a tensor, W (rows, columns) as the site sees it; the identity on what no site reads."""

    grams: tuple[Float[Array, "models *copies rows rows"], ...]
    sites: tuple[Use, ...] = field(metadata={"static": True})

    def __call__(self, x: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        """Products of the highest precision."""
        for site, g in zip(self.sites, self.grams, strict=True):
            x = _replaced(site, x, jnp.matmul(g.astype(x.dtype), _matrices(site, x), precision=HIGHEST))
        return x


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Kronecker(Operator):
    """W -> A_m W B_m at each linear site of a tensor; the product A_m x B_m of Kronecker is never formed."""

    inputs: tuple[Float[Array, "models *copies rows rows"], ...]
    gradients: tuple[Float[Array, "models *copies columns columns"], ...]
    sites: tuple[Use, ...] = field(metadata={"static": True})

    def __call__(self, x: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        """Products of the highest precision."""
        for site, a, b in zip(self.sites, self.inputs, self.gradients, strict=True):
            half = jnp.matmul(a.astype(x.dtype), _matrices(site, x), precision=HIGHEST)
            x = _replaced(site, x, jnp.matmul(half, b.astype(x.dtype), precision=HIGHEST))
        return x


def _matrices(site: Use, x: Float[Array, "models ..."]) -> Float[Array, "models *copies rows columns"]:
    return jax.vmap(site.matrix)(x).astype(x.dtype)


def _replaced(site: Use, x: Array, matrices: Array) -> Array:
    return jax.vmap(site.replaced)(x, matrices)


def is_operator(x: object) -> bool:
    """Where a tree of operators has its leaves."""
    return isinstance(x, Operator)


def weigh(shares: PyTree, stack: Stack, corrections: PyTree | None = None) -> PyTree:
    """Mean + sum_m S_m (p_m - mean) + sum_m R_m p_m for each tensor. Pure, traceable, differentiable in all its arguments.

    In float32 (or wider), rounded once to the stored dtype; running statistics are averaged.

    Args:
        shares: an `Operator` S for each leaf of the stack; where that is the identity the leaf is averaged.
        stack: the models.
        corrections: an `Operator` R for each leaf, where S is not the identity; none by default.

    Raises:
        ValueError: operators of another number of models (the path is named).
    """

    def leaf(path: tuple, share: Operator, x: Array, *correction: Operator) -> Array:
        models = wide(x)
        check_of_models(path_name(path), (share, *correction), x)
        start = mean(models)
        if is_statistic(path_name(path)) or isinstance(share, Identity):
            return start.astype(x.dtype)
        changes = [share(models - start[None]), *(r(models) for r in correction)]
        return (start + sum(c.sum(0) for c in changes[1:]) + changes[0].sum(0)).astype(x.dtype)

    more = () if corrections is None else (corrections,)
    return jax.tree_util.tree_map_with_path(leaf, shares, stack.params, *more, is_leaf=is_operator)


class QuadraticMerge(Merge):
    """A merge that is a choice of shares: theta holds an `Operator` for each leaf."""

    @property
    def program(self) -> Hashable:
        """One for all of them: what they differ in is their operators."""
        return QuadraticMerge if type(self).apply is QuadraticMerge.apply else self

    def apply(self, theta: PyTree, stack: Stack) -> PyTree:
        """`weigh`."""
        return weigh(theta, stack)


def on_leaves(params: PyTree, grams: Iterable[tuple[Use, Array]]) -> PyTree:
    """A tree of operators: `Gram` of its sites or `Diagonal` of its lookups for each leaf that has any, else the identity."""
    leaves, found = flatten(params), list(grams)
    at = by_path((use, g) for use, g in found if not isinstance(use, Lookup))
    rows: dict[str, Array] = {}
    for use, g in found:
        if isinstance(use, Lookup):
            rows[use.path] = _on_rows(use, g, rows.get(use.path, jnp.zeros(np.shape(leaves[use.path]), g.dtype)))
    at |= {path: Diagonal(values) for path, values in rows.items()}
    return jax.tree_util.tree_map_with_path(lambda path, _: at.get(path_name(path), Identity()), params)


def _on_rows(use: Lookup, rows: Float[Array, "models *copies rows"], leaf: Float[Array, "models ..."]) -> Array:
    """A leaf with one number for each row that is looked up."""
    spread = jnp.broadcast_to(rows[..., None], jax.eval_shape(jax.vmap(use.matrix), leaf).shape)
    return _replaced(use, leaf, spread)


def by_path(grams: Iterable[tuple[Use, Array]]) -> dict[str, Operator]:
    """Operators for each leaf that has sites, by its path."""
    at: dict[str, list[tuple[Use, Array]]] = {}
    for site, g in grams:
        at.setdefault(site.path, []).append((site, g))
    return {path: Gram(tuple(g for _, g in mine), tuple(site for site, _ in mine)) for path, mine in at.items()}
