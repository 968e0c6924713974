"""CCA: the linear map of each node that brings the activations to maximal correlation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from alignment.activations import ActivationAlignment
from alignment.graph import Graph
from alignment.maps import Maps, NodeMap
from alignment.moments import Moments
from alignment.procrustes import polar


@dataclass(frozen=True)
class CCA(ActivationAlignment):
    """Whiten the other model's features, rotate them onto the reference's, colour them as the reference's.

    T = Sxx^1/2 . polar(Sxx^-1/2 Sxy Syy^-1/2) . Syy^-1/2 with gamma added to the diagonals of Sxx and Syy (Horoi et al. 2024,
    "Harmony in Diversity", section 4). The inverse has the same closed form. Between elementwise nonlinearities the map is an
    approximation; after it, re-estimate BatchNorm statistics. Needs `NodeMoments`.

    Attributes:
        gamma: the regularisation; large values tend to `Procrustes`. Zero needs covariances of full rank, which ReLU nets lack.
        scale: "relative" multiplies gamma by each covariance's mean eigenvalue, so that one value suits every layer;
            "absolute" adds it as it is, as published.
    """

    gamma: float = 0.1
    scale: Literal["relative", "absolute"] = "relative"

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"gamma must not be negative, got {self.gamma}")
        if self.scale not in ("relative", "absolute"):
            raise ValueError(f"scale must be 'relative' or 'absolute', got {self.scale!r}")

    def solve(self, moments: Moments) -> NodeMap:
        """The map."""
        covariance, cross = (np.asarray(m, np.float64) for m in (moments.covariance, moments.cross[1]))
        if min(np.trace(covariance[0]), np.trace(covariance[1])) <= 1e-30:
            return self.of_permutation(np.arange(len(cross)))  # dead in one of the models
        half_x, inverse_x = _roots(self._regularised(covariance[0]))
        half_y, inverse_y = _roots(self._regularised(covariance[1]))
        rotation = polar(inverse_x @ cross @ inverse_y)
        push, pull = half_x @ rotation @ inverse_y, half_y @ rotation.T @ inverse_x
        return NodeMap(push.astype(np.float32), pull.astype(np.float32))

    def of_permutation(self, index: Int[np.ndarray, " units"]) -> NodeMap:
        """Its matrix and the transpose."""
        matrix = np.eye(len(index), dtype=np.float32)[index]
        return NodeMap(matrix, matrix.T)

    def maps(self, theta: list, graph: Graph) -> Sequence[Maps]:
        """Theta as it is."""
        return [{node: NodeMap(*m) for node, m in model.items()} for model in theta]

    def _regularised(self, s: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
        mean_eigenvalue = float(np.trace(s)) / len(s)
        added = self.gamma * mean_eigenvalue if self.scale == "relative" else self.gamma
        return s + added * np.eye(len(s))


def _roots(s: Float[np.ndarray, "n n"]) -> tuple[np.ndarray, np.ndarray]:
    """The square root of a symmetric positive matrix and its inverse."""
    values, vectors = np.linalg.eigh((s + s.T) / 2)
    values = np.sqrt(np.maximum(values, np.finfo(np.float64).eps * values.max()))
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
