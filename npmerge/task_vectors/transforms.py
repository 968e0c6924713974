"""Transforms of task vectors: the steps that merges such as TIES and DARE are made of.

A task vector is a model less its base. A transform changes the coefficients by which task vectors are added up, and sees them
as the transforms before it left them: coefficient times vector. So TIES, DARE and their relatives are choices of coefficients,
and a learned merge starts from any of them.
"""

import abc
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from alignment.checks import check_choice, check_fraction
from npmerge.arithmetic import column, ratio
from npmerge.task_vectors.selection import kept_of, largest
from npmerge.weights import Density, check_density, densities_of

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
        density: the fraction to keep, of all models or of each: the nearest number of entries, at least one.
        scope: whether in each tensor or in the whole model.
        outliers: the fraction of largest entries dropped before that; `density` has priority where both exceed one.
    """

    density: Density
    scope: Scope = "tensor"
    outliers: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", check_density(self.density))
        check_choice("scope", self.scope, ("tensor", "model"))
        check_fraction("outliers", self.outliers)

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Zero where dropped."""
        if np.all(np.asarray(self.density) == 1):
            return coefficients
        return where(self.masks(current(coefficients, vectors)), coefficients)

    def masks(self, tensors: Tensors) -> Masks:
        """True where kept."""
        return by_scope(self._keep, tensors, self.scope)

    def _keep(self, group: Tensors) -> Masks:
        models, size = len(next(iter(group.values()))), sum(x[0].size for x in group.values())
        kept = np.array([kept_of(d, size) for d in densities_of(self.density, models)])
        above = np.minimum(round(self.outliers * size), size - kept)

        def keep(model: Model, first: Array, last: Array) -> dict[str, Bool[Array, "..."]]:
            found = largest(model, last)
            return jax.tree.map(lambda k, drop: k & ~drop, found, largest(model, first)) if above.any() else found

        return jax.vmap(keep)(group, jnp.uint32(above), jnp.uint32(above + kept))


@dataclass(frozen=True)
class RandomDrop(Transform):
    """Keep each entry with a probability, independently, and divide what is kept by it, so that the expectation stays.

    Attributes:
        density: the mean probability, of all models or of each; 1 keeps everything.
    """

    density: Density

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", check_density(self.density))

    @property
    def random(self) -> bool:
        """Unless everything is kept."""
        return bool(np.any(np.asarray(self.density) < 1))

    @abc.abstractmethod
    def probability(self, x: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        """Of each entry of a tensor, as it is so far; it broadcasts against x."""

    def drawn(self, coefficients: Tensors, vectors: Tensors, key: Array) -> tuple[Tensors, Tensors]:
        """The coefficients of what is kept, zero elsewhere, and the probabilities."""
        probabilities = {path: self.probability(x) for path, x in current(coefficients, vectors).items()}
        return where(draw(key, probabilities, vectors), coefficients), probabilities

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Zero where dropped, larger elsewhere."""
        if not self.random:
            return coefficients
        kept, probabilities = self.drawn(coefficients, vectors, key)
        return {path: c / probabilities[path] for path, c in kept.items()}


@dataclass(frozen=True)
class Drop(RandomDrop):
    """Keep each entry with the same probability.

    Attributes:
        density: the probability, of all models or of each.
        rescale: "density" divides what is kept by the density, so that the expectation stays; "l1" keeps the sum of magnitudes
            of each tensor; None leaves it.
    """

    rescale: Literal["density", "l1"] | None = "density"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rescale", self.rescale, ("density", "l1", None))

    def probability(self, x: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        """The density."""
        return column(densities_of(self.density, len(x)), x)

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Zero where dropped, elsewhere as `rescale` says."""
        if self.rescale == "density" or not self.random:
            return super().__call__(coefficients, vectors, key)
        kept, _ = self.drawn(coefficients, vectors, key)
        if self.rescale is None:
            return kept
        before, after = (_sums(jax.tree.map(jnp.abs, current(c, vectors))) for c in (coefficients, kept))
        return {path: c * ratio(before[path], after[path]) for path, c in kept.items()}


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


def _sums(tensors: Tensors) -> Tensors:
    """The sum of each model's entries in each tensor, with axes of length one."""
    return {path: x.sum(tuple(range(1, x.ndim)), keepdims=True) for path, x in tensors.items()}
