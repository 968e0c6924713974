"""Activation matching: permutations that make the activations agree."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from alignment.activations.correlation import assign_living, correlation, living
from alignment.activations.moments import Moments
from alignment.base import PermutationAlignment
from alignment.checks import check_choice
from alignment.graph import GroupName
from alignment.methods.by_activations import ActivationAlignment


@dataclass(frozen=True)
class ActivationMatching(ActivationAlignment, PermutationAlignment):
    """Pair the units whose activations agree most on the same inputs.

    A linear assignment on post-nonlinearity activations a of model 0 and b of another, for each node independently (Li et al.
    2015; Ainsworth et al. 2022, section 3.1). Heads are matched on two levels, each pair worth what the best assignment of the
    units inside is worth by the same cost. Units that do not vary are dead in every cost: the living are assigned first, dead
    ones and what is left over stay where they are or are paired in ascending order. Ties are broken towards the identity. Fewer
    samples than units are no obstacle, as nothing is inverted, but make chance correlations large. Needs `NodeMoments`.

    Attributes:
        cost: "correlation", Pearson's; "uncentred", E[a b] (the published code of Git Re-Basin); "euclidean", minus the
            distance over all samples, sqrt(samples E[(a - b)^2]) (as in PLeaS, which adds up distances batch by batch). The
            squared distance would give the assignment of "uncentred": its other terms do not depend on the pairing.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> a = {"up": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "down": jnp.ones((2, 1))}
        >>> b = {"up": jnp.array([[0.1, 2.0], [1.0, 0.1]]), "down": jnp.ones((2, 1))}
        >>> x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
        >>> graph, matching = alignment.trace(apply, a, x), alignment.ActivationMatching()
        >>> stats = nm.collect(apply, graph, [a, b], [(x, None)], matching.needs)
        >>> matching.init(graph, [a, b], stats=stats)[1]["up"].tolist()
        [1, 0]
    """

    cost: Literal["correlation", "uncentred", "euclidean"] = "correlation"

    def __post_init__(self) -> None:
        check_choice("cost", self.cost, ("correlation", "uncentred", "euclidean"))

    def solve(self, moments: Moments) -> Int[np.ndarray, " units"]:
        """The unit put at each place."""
        return assign_living(self.scores(moments), *living(moments))

    def scores(self, moments: Moments) -> Float[np.ndarray, "units units"]:
        """How well each unit of the second model (columns) fits each of the first, by the cost."""
        if self.cost == "correlation":
            return correlation(moments)
        mean, cross = np.asarray(moments.mean, np.float64), np.asarray(moments.cross[1], np.float64)
        if self.cost == "uncentred":
            return cross + np.outer(*mean)
        variance = np.diagonal(np.asarray(moments.covariance, np.float64), axis1=-2, axis2=-1)
        square = np.add.outer(*variance) - 2 * cross + np.square(np.subtract.outer(*mean))  # E[(a - b)^2] without cancellation
        return -np.sqrt(np.maximum(float(moments.samples) * square, 0))

    def likeness(self, group: GroupName, moments: Moments) -> float:
        """What the best assignment of the units of two groups is worth, whatever else their symmetry would allow."""
        return super().likeness("permutation", moments)
