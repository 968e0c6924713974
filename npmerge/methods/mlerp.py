"""The average at the models' length."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from npmerge.inner_products import Angles, Angular, on_sphere
from npmerge.weights import Weights


@dataclass(frozen=True)
class Mlerp(Angular):
    """The weighted average of each tensor, rescaled to the weighted mean of the models' norms.

    MLERP (Kim et al. 2024, Token Fusion) merges tokens and takes the largest norm. For models it is named in Tam et al. 2024,
    Realistic Evaluation of Model Merging, with the mean norm, which is taken here: the largest is that of one model alone.
    Unlike in `MultiSlerp` longer tensors weigh more. A single number is averaged.

    Attributes:
        weights: one number per model, divided by their sum; equal by default.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}])
        >>> print(np.array(nm.Mlerp()(stack)["w"]).round(3))  # the average [1.5 0.5], brought to the mean length 2
        [1.897 0.632]
    """

    weights: Weights = None

    def coefficients(self, angles: Angles, shares: Float[np.ndarray, " models"]) -> Float[np.ndarray, "groups models"]:
        """The tensors' weighted mean."""
        return on_sphere(self, angles, shares, shares * angles.norms)
