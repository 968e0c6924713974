"""Methods of angles as mergekit has them, where it has parameters that ours lack or another answer."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from npmerge.inner_products import Angles, Angular, length_of, on_sphere
from npmerge.methods.model_stock import ModelStock
from npmerge.stack import Stack
from npmerge.weights import Weights, weights_of

FLOOR = 1e-6
"""Under products of norms, and under the denominator of model stock."""


@dataclass(frozen=True)
class UnboundedModelStock(ModelStock):
    """`ModelStock` also where the mean cosine is negative, beyond the base; and with a floor under products of norms."""

    def coefficients(self, angles: Angles, shares: Float[np.ndarray, " models"]) -> Float[np.ndarray, "groups models"]:
        """The same t / N for all models."""
        n = angles.norms.shape[1]
        first, second = np.triu_indices(n, 1)
        products = angles.norms[:, first] * angles.norms[:, second]
        cosine = (angles.cosines[:, first, second] * products / np.maximum(products, FLOOR)).mean(1, keepdims=True)
        below = 1 + (n - 1) * cosine
        singular = np.abs(below) < FLOOR
        return np.broadcast_to(np.where(singular, 0, cosine / np.where(singular, 1, below)), angles.norms.shape)


@dataclass(frozen=True)
class FewStepsToKarcherMean(Angular):
    """`KarcherMean` with equal weights after a few steps.

    Attributes:
        steps: at most.
        tolerance: of the last step, an angle, where it ends; shorter models have no direction.
    """

    steps: int
    tolerance: float

    def coefficients(self, angles: Angles, shares: Float[np.ndarray, " models"]) -> Float[np.ndarray, "groups models"]:
        """By steps on the sphere."""
        some = (angles.norms > self.tolerance).astype(float)
        w = some / some.sum()
        u = w / length_of(w, angles)
        for _ in range(self.steps):
            cosine = np.clip(np.einsum("gij,gj->gi", angles.cosines, u), -1, 1)
            theta = np.arccos(cosine)
            pull = np.where(theta < self.tolerance, 0, w * theta / np.sin(np.where(theta < self.tolerance, 1, theta)))
            step = pull - (pull * cosine).sum(1, keepdims=True) * u
            length = length_of(step, angles)
            if (length < self.tolerance).all():
                break
            u = np.cos(length) * u + np.sin(length) / length * step
            u = u / length_of(u, angles)
        return on_sphere(self, angles, shares, u)


@dataclass(frozen=True)
class BarycentricSlerp(Angular):
    """`MultiSlerp` of weights that need not sum to one: they weigh the norms as they are.

    Attributes:
        weights: one per model.
        eps: added to the norms that directions are divided by.
    """

    weights: Weights
    eps: float = 0.0

    def shares(self, stack: Stack) -> Float[np.ndarray, " models"]:
        """The weights."""
        return weights_of(self, self.weights, stack)

    def coefficients(self, angles: Angles, shares: Float[np.ndarray, " models"]) -> Float[np.ndarray, "groups models"]:
        """The directions' weighted sum."""
        lengths = np.where(angles.norms > 0, angles.norms, 1)
        return on_sphere(self, angles, shares, shares * angles.norms / (lengths + self.eps))
