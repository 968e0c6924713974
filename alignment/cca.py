"""CCA: the linear map of each node that brings the activations to maximal correlation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.base import Alignment, Stats, node_moments
from alignment.graph import Graph, PyTree
from alignment.maps import Maps, NodeMap, identity
from alignment.moments import Moments, NodeMoments
from alignment.procrustes import polar


@dataclass(frozen=True)
class CCA(Alignment):
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
    needs = (NodeMoments,)

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"gamma must not be negative, got {self.gamma}")
        if self.scale not in ("relative", "absolute"):
            raise ValueError(f"scale must be 'relative' or 'absolute', got {self.scale!r}")

    def init(self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> list:
        """For each model, node -> NodeMap; the identity for model 0."""
        moments = node_moments(stats, self, graph, models)
        others = [{node: self._map(m, k) for node, m in moments.items()} for k in range(1, len(models))]
        return [{node: identity(m.mean.shape[1]) for node, m in moments.items()}, *others]

    def maps(self, theta: list, graph: Graph) -> Sequence[Maps]:
        """Theta as it is."""
        return [{node: NodeMap(*m) for node, m in model.items()} for model in theta]

    def _map(self, moments: Moments, k: int) -> NodeMap:
        if min(np.trace(np.asarray(moments.covariance[j])) for j in (0, k)) <= 1e-30:
            return identity(moments.mean.shape[1])  # a node that is dead in one of the models
        half_x, inverse_x = _roots(self._regularised(moments.covariance[0]))
        half_y, inverse_y = _roots(self._regularised(moments.covariance[k]))
        rotation = polar(inverse_x @ np.asarray(moments.cross[k], np.float64) @ inverse_y)
        push, pull = half_x @ rotation @ inverse_y, half_y @ rotation.T @ inverse_x
        return NodeMap(jnp.float32(push), jnp.float32(pull))

    def _regularised(self, covariance: Array) -> np.ndarray:
        s = np.asarray(covariance, np.float64)
        mean_eigenvalue = float(np.trace(s)) / len(s)
        added = self.gamma * mean_eigenvalue if self.scale == "relative" else self.gamma
        return s + added * np.eye(len(s))


def _roots(s: Float[np.ndarray, "n n"]) -> tuple[np.ndarray, np.ndarray]:
    """The square root of a symmetric positive matrix and its inverse."""
    values, vectors = np.linalg.eigh((s + s.T) / 2)
    values = np.sqrt(np.maximum(values, np.finfo(np.float64).eps * values.max()))
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
