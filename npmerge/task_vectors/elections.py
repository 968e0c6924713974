"""Transforms by which models vote: the sign of each parameter is elected, and what agrees is averaged."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from alignment.checks import check_choice
from npmerge.arithmetic import over_models, ratio, summed
from npmerge.task_vectors.transforms import Masks, Tensors, Transform, current, where
from npmerge.weights import Weights, vanishes


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
        return where(self.masks(current(coefficients, vectors)), coefficients)

    def masks(self, tensors: Tensors) -> Masks:
        """True where an entry has the elected sign."""

        def agree(x: Float[Array, "models ..."]) -> Bool[Array, "models ..."]:
            plus = over_models(x if self.by == "sum" else jnp.sign(x)) >= 0
            return jnp.where(plus, x > 0, x < 0)

        return jax.tree.map(agree, tensors)


@dataclass(frozen=True)
class DisjointMean(Transform):
    """Divide by the number of models whose entry is not zero.

    Attributes:
        weighted: divide by the sum of their coefficients instead, which are then weights: of those left the sum is one.
        weights: or by the sum of their weights, one per model, which the coefficients hold as a factor.
    """

    weighted: bool = False
    weights: Weights = None

    def __post_init__(self) -> None:
        if self.weights is not None and vanishes(self.weights):
            raise ValueError(f"a mean needs weights whose sum is not zero, got {self.weights}")

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Of the same signs; zero where the entries of all models are, and where weights cancel."""

        def mean(c: Float[Array, "models ..."], x: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
            each = c if self.weighted else (1.0,) * len(c) if self.weights is None else self.weights
            shares = [jnp.where(a * b != 0, one, 0.0) for a, b, one in zip(c, x, each, strict=True)]
            total = summed(shares)
            if self.weights is not None:  # of both signs, which may cancel up to rounding
                total = jnp.where(jnp.abs(total) > 1e-6 * np.abs(self.weights).sum(), total, 0.0)
            return ratio(c, total[None])

        return {path: mean(c, vectors[path]) for path, c in coefficients.items()}


@dataclass(frozen=True)
class ElectedMean(Transform):
    """`Elect("sum")` and `DisjointMean(weights=weights)` at once, of weights above zero.

    The elected sign is that of the share, so that of each parameter one number is kept rather than one for each model.

    Attributes:
        weights: one per model, which the coefficients hold as a factor; all alike by default.
    """

    weights: Weights = None

    def __post_init__(self) -> None:
        if self.weights is not None and min(self.weights) <= 0:
            raise ValueError(f"signed shares need weights above zero, got {self.weights}")

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Zero where the sign is not the elected one, zero entries included."""

        def mean(c: Float[Array, "models ..."], x: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
            each = (1.0,) * len(x) if self.weights is None else self.weights
            models = [c[k] * x[k] for k in range(len(x))]
            plus = summed(models) >= 0
            agree = [jnp.where(plus, one > 0, one < 0) for one in models]
            total = summed([jnp.where(a, one, 0.0) for a, one in zip(agree, each, strict=True)])
            share = (jnp.where(plus, 1.0, -1.0) * ratio(jnp.ones_like(total), total))[None]
            return jnp.where(jnp.where(share > 0, c * x > 0, c * x < 0), c * jnp.abs(share), 0.0)

        return {path: mean(c, vectors[path]) for path, c in coefficients.items()}
