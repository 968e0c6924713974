"""Fisher-weighted averaging."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.graph import PyTree, weights_of
from npmerge.arithmetic import column
from npmerge.base import Stats
from npmerge.linear import LinearMerge
from npmerge.stack import Stack
from npmerge.statistics.fisher_information import DiagonalFisher, information_of
from npmerge.weights import Weights, check_weights, shares_of


@dataclass(frozen=True)
class Fisher(LinearMerge):
    """sum_m w_m F_m params_m / sum_m w_m F_m elementwise, F_m the diagonal Fisher information.

    Matena and Raffel 2022. Where no model has any information that counts the parameter is the mean with these weights;
    git-theta gives zero there. No floor is added to the information: it would only matter there, and where the loss is small,
    as its scale is not that of the loss (the program of Tam et al. 2023 raises it to 1e-8 at least, FusionBench adds 1e-6).
    `DiagonalFisher` takes a backward pass for each example and class: of many classes, collect `DiagonalFisher("sampled")`.

    Attributes:
        weights: lambda, one number of 0 or more per model, all alike by default. For two models published as (a, 1 - a), a
            searched in 0, 0.1, ..., 1.
        normalise: divide the information of each model by its norm over all weights first, so that no model dominates because
            its loss has the larger gradients (as FusionBench does; the paper does not).

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([5.0, 5.0])}])
        >>> information = {"w": jnp.array([[3.0, 0.0], [1.0, 2.0]])}  # `collect` measures it
        >>> merged = nm.Fisher()(stack, stats={nm.DiagonalFisher: information})
        >>> print(np.array(merged["w"]).round(3))  # nearer to the model that is sure
        [2. 5.]
    """

    weights: Weights = None
    normalise: bool = False
    needs = (DiagonalFisher,)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", check_weights(self, self.weights))
        if self.weights is not None and min(self.weights) < 0:
            raise ValueError(f"Fisher needs weights of 0 or more, got {self.weights}")

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """One coefficient per parameter.

        Raises:
            ValueError: no statistics, those of other models, or not finite ones; another number of weights than of models.
        """
        shares = jnp.float32(shares_of(self, self.weights, stack))
        return _shares(self.normalise, information_of(self, stack, stats), shares)


@functools.partial(jax.jit, static_argnums=0)
def _shares(normalise: bool, information: PyTree, weights: Float[Array, " models"]) -> PyTree:
    norms = _norms(information) if normalise else jnp.ones_like(weights)

    def share(f: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        norm = column(norms, f)
        return _share(f / jnp.where(norm > 0, norm, 1), jnp.broadcast_to(column(weights, f), f.shape))

    return jax.tree.map(share, information)


def _norms(information: PyTree) -> Float[Array, " models"]:
    # scaled by the largest entry first: squares of tiny values must not underflow, of huge ones not overflow
    weights = [f.reshape(len(f), -1) for f in weights_of(information).values()]
    largest = jnp.stack([f.max(1) for f in weights]).max(0)
    scale = jnp.where(largest > 0, largest, 1)[:, None]
    square = jnp.stack([jnp.square(f / scale).sum(1) for f in weights]).sum(0)
    return largest * jnp.sqrt(jnp.where(square > 0, square, 1))


def _share(f: Float[Array, "models ..."], weights: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
    # scaled by the largest first: a sum of tiny values must not underflow
    largest = f.max(0, keepdims=True)
    f = weights * (f / jnp.where(largest > 0, largest, 1))
    total = f.sum(0, keepdims=True)
    return jnp.where(total > 0, f / jnp.where(total > 0, total, 1), weights)
