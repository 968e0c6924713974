"""The mean on the sphere of several models."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from npmerge.inner_products import Angles, Angular, length_of, on_sphere, unit
from npmerge.weights import Weights

STEPS = 1000
"""At most. Directions in one half-space need some ten; more is a sign that there is no mean."""

TOLERANCE = 1e-7
"""The last step, an angle: what float64 Gram matrices resolve, and as good as float32 parameters."""


@dataclass(frozen=True)
class KarcherMean(Angular):
    """The direction u that minimises sum_m w_m angle(u, params_m)^2, times the weighted mean of the norms, for each tensor.

    Found by u <- exp_u(sum_m w_m log_u(u_m)) from the normalised weighted mean of the directions u_m (Karcher 1977; for models
    Wang et al. 2026, `karcher` in mergekit, which has equal weights, takes inner products in the stored dtype and stops after
    10 steps or below 1e-5). Of two models with equal weights and norms it is their `Slerp` at 1/2. A tensor of norm zero has no
    direction and takes no part in the mean of directions, but counts in that of the norms. A single number is averaged.

    Attributes:
        weights: one number of 0 or more per model, divided by their sum; equal by default.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([2.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}])
        >>> print(np.array(nm.KarcherMean((3, 1))(stack)["w"]).round(3))  # a quarter of the arc; the mean is [1.5 0.5]
        [1.848 0.765]
    """

    weights: Weights = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None and min(self.weights) < 0:
            raise ValueError(f"KarcherMean needs weights of 0 or more, got {self.weights}")

    def coefficients(self, angles: Angles, shares: Float[np.ndarray, " models"]) -> Float[np.ndarray, "groups models"]:
        """By steps of gradient descent on the sphere."""
        w = shares * (angles.norms > 0)
        w = w / w.sum()
        u = unit(self, angles, w)
        for _ in range(STEPS):
            cosine = np.clip(np.einsum("gij,gj->gi", angles.cosines, u), -1, 1)
            pull = w / np.sinc(np.arccos(np.maximum(cosine, 1e-6 - 1)) / np.pi)  # w theta / sin(theta)
            step = pull - (pull * cosine).sum(1, keepdims=True) * u
            length = length_of(step, angles)
            if (length < TOLERANCE).all():
                return on_sphere(self, angles, shares, u)
            u = unit(self, angles, np.cos(length) * u + np.sin(length) / length * step)
        raise ValueError(f"KarcherMean is undefined for the tensors at {angles.path!r}: they are too far apart for a mean")
