"""Spherical averaging of several models in closed form."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from npmerge.inner_products import Angles, Angular, on_sphere
from npmerge.weights import Weights


@dataclass(frozen=True)
class MultiSlerp(Angular):
    """u * sum_m w_m |params_m|, u the direction of sum_m w_m params_m / |params_m|, for each tensor.

    `multislerp` in mergekit (Goddard 2024), which projects to the tangent space at u, averages there and maps back: the
    average there is zero, so u is the result, and here it is written so. The first step of `KarcherMean`, which it equals for
    two models of equal weight. A tensor of norm zero has no direction, but counts in the mean of the norms. A single number
    is averaged.

    Attributes:
        weights: one number per model, divided by their sum; equal by default.
        task_vectors: merge the differences from the base, which is then needed.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}])
        >>> print(np.array(nm.MultiSlerp()(stack)["w"]).round(3))  # the direction between both, the mean length 2
        [1.414 1.414]
    """

    weights: Weights = None
    task_vectors: bool = False

    def coefficients(self, angles: Angles, shares: Float[np.ndarray, " models"]) -> Float[np.ndarray, "groups models"]:
        """The directions' weighted mean. mergekit has the average for two opposite tensors, which are an error here."""
        return on_sphere(self, angles, shares, shares * (angles.norms > 0))
