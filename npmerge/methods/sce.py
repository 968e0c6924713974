"""SCE: select, calculate, erase."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.checks import check_fraction
from npmerge.arithmetic import ratio
from npmerge.task_vectors.composed import Composed
from npmerge.task_vectors.elections import DisjointMean, Elect
from npmerge.task_vectors.selection import kept_of, largest
from npmerge.task_vectors.transforms import Tensors, Transform, current, where


@dataclass(frozen=True)
class Sce(Composed):
    """base + scale * a weighted mean of the task vectors where the models differ most (FuseChat, Wan et al. 2024).

    Select the parameters of each tensor whose variance over the models is largest; calculate each model's weight in the tensor,
    its share of the sum of squares of what is selected; erase the entries whose sign is not that of the sum over the models;
    divide by the weights of those left. Needs a base.

    Where implementations disagree: some select among the parameters of nonzero variance, here among all, in both cases the
    nearest number; the vote is unweighted; models with nothing selected share equal weights, and no floor is put under the
    sum of weights (some have 1e-6 for both, so that the merge depends on the size of the task vectors).

    Attributes:
        density: the fraction of parameters selected, select_topk in merge toolkits; 1 selects all.
        scale: lambda.

    Example:
        >>> models = [{"w": jnp.array([1.0, 6.0, 0.0])}, {"w": jnp.array([1.0, 2.0, 1.0])}]
        >>> stack = nm.stack_models(models, base={"w": jnp.zeros(3)})
        >>> print(np.array(nm.Sce(density=1 / 3)(stack)["w"]).round(3))  # where they differ most, in shares 36 : 4
        [0.  5.6 0. ]
    """

    density: float = 1.0
    scale: float = 1.0

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Select, calculate and erase, and the weighted mean."""
        return (SelectByVariance(self.density), WeighAndErase(), DisjointMean(weighted=True))


@dataclass(frozen=True)
class SelectByVariance(Transform):
    """Keep the fraction `density` of the parameters of each tensor, those of largest variance over the models."""

    density: float

    def __post_init__(self) -> None:
        check_fraction("density", self.density, positive=True)

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Zero for all models where not selected."""
        if self.density == 1:
            return coefficients
        return where(jax.tree.map(self._select, current(coefficients, vectors)), coefficients)

    def _select(self, x: Float[Array, "models ..."]) -> Array:
        x = ratio(x, jnp.abs(x).max(keepdims=True))
        return largest(jnp.var(x, 0, keepdims=True), kept_of(self.density, x[0].size))


@dataclass(frozen=True)
class WeighAndErase(Transform):
    """Weigh each model by its share of the sum of squares in each tensor, and drop minority signs; neither sees the other."""

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Coefficients of the majority times the share of their model."""
        shares = jax.tree.map(_shares, current(coefficients, vectors))
        return {path: shares[path] * c for path, c in Elect("sum")(coefficients, vectors, key).items()}


def _shares(x: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
    squares = jnp.square(ratio(x, jnp.abs(x).max(keepdims=True))).sum(tuple(range(1, x.ndim)), keepdims=True)
    return ratio(squares, squares.sum(0, keepdims=True))
