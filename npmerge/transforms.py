"""Transforms of task vectors, and the merges that are a sequence of them.

A task vector is a model less its base. A transform changes the coefficients by which task vectors are added up, and sees them
as the transforms before it left them: coefficient times vector. So TIES, DARE and their relatives are choices of coefficients,
and a learned merge starts from any of them.
"""

import abc
import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignment.checks import check_choice, check_finite_number, check_fraction, check_key
from alignment.graph import PyTree, path_name
from npmerge.base import LinearMerge, Stats, is_statistic, wide
from npmerge.selection import kept_of, largest
from npmerge.stack import Stack

Tensors = dict[str, Float[Array, "models ..."]]
"""One array per path; running statistics are left out."""
Model = dict[str, Float[Array, "..."]]
"""Those of one model."""
Masks = dict[str, Bool[Array, "models ..."]]
Scope = Literal["tensor", "model"]
"""What entries compete with: those of their tensor, or those of all tensors of their model."""


class Transform(abc.ABC):
    """A map from coefficients to coefficients. Subclasses are frozen dataclasses whose calls are traceable."""

    @property
    def random(self) -> bool:
        """Whether it uses its key."""
        return False

    @abc.abstractmethod
    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """The new coefficients.

        Args:
            coefficients: one float32 array per path that broadcasts against its vectors.
            vectors: the task vectors, (models, ...) in float32.
            key: the transform's own.
        """


@dataclass(frozen=True)
class Trim(Transform):
    """Keep the entries of largest magnitude of each model; of equal ones the first.

    Attributes:
        density: the fraction to keep: the nearest number of entries, at least one.
        scope: whether in each tensor or in the whole model.
        outliers: the fraction of largest entries dropped before that; `density` has priority where both exceed one.
    """

    density: float
    scope: Scope = "tensor"
    outliers: float = 0.0

    def __post_init__(self) -> None:
        check_fraction("density", self.density, positive=True)
        check_choice("scope", self.scope, ("tensor", "model"))
        check_fraction("outliers", self.outliers)

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Zero where dropped."""
        if self.density == 1:
            return coefficients
        return where(self.masks(current(coefficients, vectors)), coefficients)

    def masks(self, tensors: Tensors) -> Masks:
        """True where kept."""
        return by_scope(lambda group: jax.lax.map(self._keep, group), tensors, self.scope)

    def _keep(self, model: Model) -> dict[str, Bool[Array, "..."]]:
        size = sum(x.size for x in model.values())
        kept = kept_of(self.density, size)
        above = min(round(self.outliers * size), size - kept)
        keep = largest(model, above + kept)
        return jax.tree.map(lambda k, drop: k & ~drop, keep, largest(model, above)) if above else keep


@dataclass(frozen=True)
class Drop(Transform):
    """Keep each entry with a probability, independently.

    Attributes:
        density: the probability.
        rescale: "density" divides what is kept by the density, so that the expectation stays; "l1" keeps the sum of magnitudes
            of each tensor; None leaves it.
    """

    density: float
    rescale: Literal["density", "l1"] | None = "density"

    def __post_init__(self) -> None:
        check_fraction("density", self.density, positive=True)
        check_choice("rescale", self.rescale, ("density", "l1", None))

    @property
    def random(self) -> bool:
        """Unless everything is kept."""
        return self.density < 1

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Zero where dropped, larger elsewhere."""
        if not self.random:
            return coefficients
        kept = where(draw(key, dict.fromkeys(vectors, self.density), vectors), coefficients)
        if self.rescale == "density":
            return {path: c / self.density for path, c in kept.items()}
        if self.rescale == "l1":
            before, after = (_sums(jax.tree.map(jnp.abs, current(c, vectors))) for c in (coefficients, kept))
            return {path: c * ratio(before[path], after[path]) for path, c in kept.items()}
        return kept


@dataclass(frozen=True)
class Elect(Transform):
    """Drop the entries whose sign is not the one elected for their parameter. Where the vote is a tie, that is plus.

    Attributes:
        by: "sum" elects the sign of the sum over the models, "count" that of most models, zeros abstaining.
    """

    by: Literal["sum", "count"] = "sum"

    def __post_init__(self) -> None:
        check_choice("by", self.by, ("sum", "count"))

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Zero where dropped, zero entries included."""

        def agree(x: Float[Array, "models ..."]) -> Bool[Array, "models ..."]:
            plus = over_models(x if self.by == "sum" else jnp.sign(x))[0] >= 0
            return jnp.stack([jnp.where(plus, one > 0, one < 0) for one in x])  # model by model, as `over_models`

        return where(jax.tree.map(agree, current(coefficients, vectors)), coefficients)


@dataclass(frozen=True)
class DisjointMean(Transform):
    """Divide by the number of models whose entry is not zero.

    Attributes:
        weighted: divide by the sum of their coefficients instead, which are then weights: of those left the sum is one.
    """

    weighted: bool = False

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Of the same signs; zero where the entries of all models are."""

        def mean(c: Float[Array, "models ..."], x: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
            shares = [jnp.where(a * b != 0, a if self.weighted else 1.0, 0.0) for a, b in zip(c, x, strict=True)]
            total = functools.reduce(jnp.add, shares)
            return jnp.stack([ratio(one, total) for one in c])

        return {path: mean(c, vectors[path]) for path, c in coefficients.items()}


class Composed(LinearMerge):
    """base + scale * sum_m c_m * (params_m - base), c the ones as a sequence of transforms leaves them. Needs a base.

    Subclasses are frozen dataclasses with a field `scale`.
    """

    needs_base = True
    scale: float

    @property
    @abc.abstractmethod
    def transforms(self) -> tuple[Transform, ...]:
        """In the order in which they are applied."""

    def __post_init__(self) -> None:
        """Check the scale, and what the transforms check of their own."""
        check_finite_number("scale", self.scale)
        _ = self.transforms

    @property
    def random(self) -> bool:
        """Whether one of the transforms is."""
        return any(t.random for t in self.transforms)

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """One coefficient per parameter. Raises ValueError without a base, or without a key if masks are drawn."""
        self.require_base(stack)
        check_key(key)
        if key is None and self.random:
            raise ValueError(f"{type(self).__name__} drops entries at random: pass key=jax.random.key(seed)")
        used = jax.random.key(0) if key is None else key  # by no transform then
        found = _transformed(self.transforms, float(self.scale), _task_vectors(stack), used)
        share = 1 / stack.size  # of running statistics, which are averaged
        return jax.tree_util.tree_map_with_path(
            lambda path, x: found.get(path_name(path), jnp.full((len(x),) + (1,) * (x.ndim - 1), share, jnp.float32)),
            stack.params,
        )


@jax.jit
def _task_vectors(stack: Stack) -> Tensors:
    """In float32; a separate step, so that the transforms compile once for models of any precision."""

    def less(x: Array, base: Array) -> Array:
        return (wide(x) - wide(base)[None]).astype(jnp.float32)

    leaves = jax.tree_util.tree_flatten_with_path(jax.tree.map(less, stack.params, stack.base))[0]
    return {path_name(path): x for path, x in leaves if not is_statistic(path_name(path))}


@functools.partial(jax.jit, static_argnums=0)
def _transformed(transforms: tuple[Transform, ...], scale: Array, vectors: Tensors, key: Array) -> Tensors:
    coefficients = {path: jnp.ones((len(x),) + (1,) * (x.ndim - 1), jnp.float32) for path, x in vectors.items()}
    for place, transform in enumerate(transforms):
        coefficients = transform(coefficients, vectors, jax.random.fold_in(key, place))
    return {path: scale * c for path, c in coefficients.items()}


def current(coefficients: Tensors, vectors: Tensors) -> Tensors:
    """The task vectors as the transforms so far leave them."""
    return {path: coefficients[path] * x for path, x in vectors.items()}


def where(keep: Masks, coefficients: Tensors) -> Tensors:
    """The coefficients of what is kept, zero elsewhere."""
    return {path: jnp.where(keep[path], c, 0.0) for path, c in coefficients.items()}


def draw(key: Array, probabilities: dict[str, Any], like: Tensors) -> Masks:
    """Masks of the shapes of `like`, drawn tensor by tensor with the key and the path: no order of tensors matters.

    The probabilities, by path, broadcast against them.
    """

    def mask(path: str, shape: tuple[int, ...]) -> Array:
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        return jax.random.uniform(own, shape, jnp.float32) < probabilities[path]

    return {path: mask(path, x.shape) for path, x in like.items()}


def by_scope(choose: Callable[[Tensors], dict[str, Array]], tensors: Tensors, scope: Scope) -> dict[str, Array]:
    """`choose` of all tensors together, or of each by itself."""
    if scope == "model":
        return choose(tensors)
    return {path: choose({path: x})[path] for path, x in tensors.items()}


def over_models(x: Float[Array, "models ..."]) -> Float[Array, "1 ..."]:
    """The sum over the models, written out: on CPUs a reduction over the leading axis is far slower."""
    return functools.reduce(jnp.add, [x[k] for k in range(len(x))])[None]


def ratio(x: Float[Array, "..."], total: Float[Array, "..."]) -> Float[Array, "..."]:
    """The quotient, and zero where the total is."""
    return jnp.where(total != 0, x / jnp.where(total != 0, total, 1.0), 0.0)


def _sums(tensors: Tensors) -> Tensors:
    """The sum of each model's entries in each tensor, with axes of length one."""
    return {path: x.sum(tuple(range(1, x.ndim)), keepdims=True) for path, x in tensors.items()}
