"""Merges that are a sequence of transforms of task vectors."""

import abc
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignment.checks import check_finite_number, check_key
from alignment.graph import PyTree, path_name
from alignment.names import is_statistic
from npmerge.arithmetic import column, wide
from npmerge.base import Stats
from npmerge.linear import LinearMerge
from npmerge.stack import Stack
from npmerge.task_vectors.transforms import Tensors, Transform
from npmerge.weights import Weights, check_density, check_weights, weights_of


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
