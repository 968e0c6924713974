"""Methods of angles as mergekit has them, where it has parameters that ours lack or another answer."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree
from npmerge.base import LinearMerge, Stats
from npmerge.inner_products import Angles, from_angles, length_of, on_sphere
from npmerge.methods.model_stock import ModelStock
from npmerge.stack import Stack

FLOOR = 1e-6
"""Under products of norms, and under the denominator of model stock."""


@dataclass(frozen=True)
class UnboundedModelStock(ModelStock):
    """`ModelStock` also where the mean cosine is negative, beyond the base; and with a floor under products of norms."""

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """As `ModelStock`."""
        uniform = np.full(stack.size, 1 / stack.size)
        return from_angles(_unbounded, stack, uniform, needs_base=True, per_channel=self.per_channel)


def _unbounded(angles: Angles) -> Float[np.ndarray, "groups models"]:
    n = angles.norms.shape[1]
    first, second = np.triu_indices(n, 1)
    products = angles.norms[:, first] * angles.norms[:, second]
    cosine = (angles.cosines[:, first, second] * products / np.maximum(products, FLOOR)).mean(1, keepdims=True)
    below = 1 + (n - 1) * cosine
    singular = np.abs(below) < FLOOR
    return np.broadcast_to(np.where(singular, 0, cosine / np.where(singular, 1, below)), angles.norms.shape)


@dataclass(frozen=True)
class FewStepsToKarcherMean(LinearMerge):
    """`KarcherMean` with equal weights after a few steps.

    Attributes:
        steps: at most.
        tolerance: of the last step, an angle, where it ends; shorter models have no direction.
    """

    steps: int
    tolerance: float

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """One coefficient per model and tensor."""
        return from_angles(self._coefficients, stack, np.full(stack.size, 1 / stack.size))

    def _coefficients(self, angles: Angles) -> Float[np.ndarray, "1 models"]:
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
        return on_sphere(self, angles, np.full(len(w[0]), 1 / len(w[0])), u)


@dataclass(frozen=True)
class BarycentricSlerp(LinearMerge):
    """`MultiSlerp` of weights that need not sum to one: they weigh the norms as they are.

    Attributes:
        weights: one per model.
        eps: added to the norms that directions are divided by.
    """

    weights: tuple[float, ...]
    eps: float = 0.0

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """One coefficient per model and tensor. Raises ValueError for tensors whose directions cancel out."""
        w = np.array(self.weights)
        return from_angles(lambda angles: self._coefficients(angles, w), stack, w)

    def _coefficients(self, angles: Angles, w: Float[np.ndarray, " models"]) -> Float[np.ndarray, "1 models"]:
        lengths = np.where(angles.norms > 0, angles.norms, 1)
        return on_sphere(self, angles, w, w * angles.norms / (lengths + self.eps))
