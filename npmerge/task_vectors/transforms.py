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
import numpy as np
from jaxtyping import Array, Bool, Float

from alignment.checks import check_choice, check_finite_number, check_fraction, check_key
from alignment.graph import PyTree, path_name
from npmerge.base import LinearMerge, Stats, is_statistic, wide
from npmerge.stack import Stack
from npmerge.task_vectors.selection import kept_of, largest
from npmerge.weights import Density, Weights, check_density, check_weights, densities_of, weights_of

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
class Drop(Transform):
    """Keep each entry with a probability, independently.

    Attributes:
        density: the probability, of all models or of each.
        rescale: "density" divides what is kept by the density, so that the expectation stays; "l1" keeps the sum of magnitudes
            of each tensor; None leaves it.
    """

    density: Density
    rescale: Literal["density", "l1"] | None = "density"

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", check_density(self.density))
        check_choice("rescale", self.rescale, ("density", "l1", None))

    @property
    def random(self) -> bool:
        """Unless everything is kept."""
        return bool(np.any(np.asarray(self.density) < 1))

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Zero where dropped, larger elsewhere."""
        if not self.random:
            return coefficients
        density = {path: column(densities_of(self.density, len(x)), x) for path, x in vectors.items()}
        kept = where(draw(key, density, vectors), coefficients)
        if self.rescale == "density":
            return {path: c / density[path] for path, c in kept.items()}
        if self.rescale == "l1":
            before, after = (_sums(jax.tree.map(jnp.abs, current(c, vectors))) for c in (coefficients, kept))
            return {path: c * ratio(before[path], after[path]) for path, c in kept.items()}
        return kept


class Composed(LinearMerge):
    """base + scale * sum_m c_m * (params_m - base), c the weights as a sequence of transforms leaves them. Needs a base.

    Subclasses are frozen dataclasses with a field `scale`. They may have fields `weights`, one number per model by which task
    vectors are multiplied before the first transform, ones by default; and `density`, one number or one per model.

    Example:
        >>> import dataclasses
        >>> from npmerge.task_vectors.elections import Elect
        >>> from npmerge.task_vectors.transforms import Trim
        >>> @dataclasses.dataclass(frozen=True)
        ... class TrimmedSum(nm.Composed):
        ...     scale: float = 1.0
        ...     transforms = (Trim(density=0.5), Elect("sum"))
        >>> models = [{"w": jnp.array([4.0, 1.0])}, {"w": jnp.array([-3.0, 2.0])}]
        >>> print(TrimmedSum()(nm.stack_models(models, base={"w": jnp.zeros(2)}))["w"])  # 4 and -3 are kept, plus is elected
        [4. 0.]
    """

    needs_base = True
    scale: float
    weights: Weights = None

    @property
    @abc.abstractmethod
    def transforms(self) -> tuple[Transform, ...]:
        """In the order in which they are applied."""

    def __post_init__(self) -> None:
        """Check the scale, and what the transforms check of their own."""
        super().__post_init__()
        check_finite_number("scale", self.scale)
        object.__setattr__(self, "weights", check_weights(self, self.weights))
        if hasattr(self, "density"):
            object.__setattr__(self, "density", check_density(self.density))
        _ = self.transforms

    @property
    def random(self) -> bool:
        """Whether one of the transforms is."""
        return any(t.random for t in self.transforms)

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """One coefficient per parameter.

        Raises:
            ValueError: no base; no key if masks are drawn; another number of weights or densities than of models.
        """
        self.require_base(stack)
        check_key(key)
        if key is None and self.random:
            raise ValueError(f"{type(self).__name__} drops entries at random: pass key=jax.random.key(seed)")
        used = jax.random.key(0) if key is None else key  # by no transform then
        weights = None if self.weights is None else weights_of(self, self.weights, stack).astype(np.float32)
        found = _transformed(self.transforms, float(self.scale), weights, task_vectors(stack), used)
        share = 1 / stack.size  # of running statistics, which are averaged
        return jax.tree_util.tree_map_with_path(
            lambda path, x: found.get(path_name(path), jnp.full((len(x),) + (1,) * (x.ndim - 1), share, jnp.float32)),
            stack.params,
        )


@jax.jit
def task_vectors(stack: Stack) -> Tensors:
    """Models less the base, by path, in float32; a separate step: transforms compile once for models of any precision."""

    def less(x: Array, base: Array) -> Array:
        return (wide(x) - wide(base)[None]).astype(jnp.float32)

    leaves = jax.tree_util.tree_flatten_with_path(jax.tree.map(less, stack.params, stack.base))[0]
    return {path_name(path): x for path, x in leaves if not is_statistic(path_name(path))}


@functools.partial(jax.jit, static_argnums=0)
def _transformed(
    transforms: tuple[Transform, ...], scale: Array, weights: Array | None, vectors: Tensors, key: Array
) -> Tensors:
    # ones are a constant, which costs no pass over the vectors
    coefficients = {path: column(jnp.ones(len(x)) if weights is None else weights, x) for path, x in vectors.items()}
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


def column(values: Any, x: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
    """One number per model as an array of as many axes as `x`."""
    return jnp.asarray(values, jnp.float32).reshape((len(x),) + (1,) * (x.ndim - 1))


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
