"""Spherical interpolation of two models or of two task vectors, by tensor or by channel."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from npmerge.inner_products import Angles, Angular, arc
from npmerge.weights import Weights


@dataclass(frozen=True)
class NuSlerp(Angular):
    """`Slerp` with t = w_1 / (w_0 + w_1), `nuslerp` in mergekit, whose differences from `slerp` it has.

    It is linear for parallel tensors only, not from |cos omega| = 0.9995 on, and t may lie outside of [0, 1]. Weights that sum
    to zero and opposite tensors are errors (in mergekit t = 1/2, and the linear interpolation or, by rounding, anything).

    Attributes:
        weights: of the two models; equal by default.
        task_vectors: merge the differences from the base, which is then needed.
        per_channel: one angle per output channel (the last axis; `nuslerp_flatten: false`) rather than per tensor.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}])
        >>> print(np.array(nm.NuSlerp((1, 2))(stack)["w"]).round(3))  # two thirds of the arc, 60 degrees
        [0.5   0.866]
        >>> print(np.array(nm.NuSlerp((-1, 3))(stack)["w"]).round(3))  # beyond the second model, 135 degrees
        [-0.707  0.707]
    """

    weights: Weights = None
    task_vectors: bool = False
    per_channel: bool = False
    models = (2, 2)

    def coefficients(self, angles: Angles, shares: Float[np.ndarray, " models"]) -> Float[np.ndarray, "groups models"]:
        """The arc."""
        return arc(self, angles, float(shares[1]), linear_from=1.0)
