"""Activation matching: permutations that make the activations agree."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array

from alignment.assignment import assign
from alignment.base import PermutationAlignment, Stats, node_moments
from alignment.graph import Graph, PyTree
from alignment.moments import Moments, NodeMoments


@dataclass(frozen=True)
class ActivationMatching(PermutationAlignment):
    """Pair the units whose activations correlate most on the same inputs.

    A linear assignment on the Pearson correlation of post-nonlinearity activations, for each node independently (Li et al.
    2015; Ainsworth et al. 2022, section 3.1). Dead units have correlation zero with everything and share what places are
    left. Needs `NodeMoments`.
    """

    needs = (NodeMoments,)

    def init(self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> list:
        """For each model, node -> index of the unit put at each place; the identity for model 0."""
        moments = node_moments(stats, self, graph, models)
        correlations = {node: correlation(m) for node, m in moments.items()}
        same = {node: np.arange(c.shape[1]) for node, c in correlations.items()}
        return [same, *({node: assign(c[k]) for node, c in correlations.items()} for k in range(1, len(models)))]


def correlation(moments: Moments) -> np.ndarray:
    """Pearson correlation of model 0's units with each model's, (models, units, units); zero for dead units."""
    deviation = np.sqrt(np.maximum(np.diagonal(np.asarray(moments.covariance, np.float64), axis1=1, axis2=2), 0))
    scale = deviation[:1, :, None] * deviation[:, None, :]
    alive = scale > 1e-7 * max(scale.max(initial=0), 1e-30)
    return np.where(alive, np.asarray(moments.cross, np.float64) / np.where(alive, scale, 1), 0)
