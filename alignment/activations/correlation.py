"""What the moments of two models say of their units: which live, how they correlate, along which directions they vary."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from alignment.activations.collected import check_moments
from alignment.activations.moments import Moments
from alignment.assignment import assign

ROUNDING = 1e-5
"""What float32 moments do not know of a correlation."""


def deviation(moments: Moments) -> Float[np.ndarray, "models *copies units"]:
    """The standard deviation of each unit, in float64."""
    return np.sqrt(np.maximum(np.diagonal(np.asarray(moments.covariance, np.float64), axis1=-2, axis2=-1), 0))


def living(moments: Moments) -> Bool[np.ndarray, "models *copies units"]:
    """Which units vary at all: by more than 1e-6 of the node's largest deviation, and than rounding of their own mean."""
    spread, mean = deviation(moments), np.abs(np.asarray(moments.mean, np.float64))
    return spread > 1e-6 * np.maximum(spread.max(-1, keepdims=True, initial=0), mean)


def correlation(moments: Moments) -> Float[np.ndarray, "*copies units units"]:
    """Pearson correlation of the units of the first of two models with those of the second; zero for dead units."""
    spread, alive = deviation(moments), living(moments)
    both = alive[0][..., :, None] & alive[1][..., None, :]
    scale = spread[0][..., :, None] * spread[1][..., None, :]
    return np.where(both, np.asarray(moments.cross[1], np.float64) / np.where(both, scale, 1), 0)


def matched_correlation(moments: Mapping[str, Moments]) -> dict[str, Float[np.ndarray, " others"]]:
    """How well aligned models agree, node by node: the mean correlation of unit i of each other model with unit i of model 0.

    Take the moments of the models that `align` returned. Pearson's, over all copies of a node together; units that are dead
    in one of the two are left out. Zero for a node without any living pair.

    Args:
        moments: `stats[NodeMoments]` of two or more models.

    Raises:
        ValueError: for moments that are not finite (the node is named), of one model, or something else.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> a = {"up": jnp.array([[1.0, -1.0]]), "down": jnp.ones((2, 1))}
        >>> b = {"up": jnp.array([[-2.0, 2.0]]), "down": jnp.ones((2, 1))}
        >>> x, graph = jnp.array([[1.0], [-1.0], [2.0], [-2.0]]), alignment.trace(apply, a, jnp.ones((1, 1)))
        >>> for models in ([a, b], alignment.align(alignment.WeightMatching(), graph, [a, b])):
        ...     stats = nm.collect(apply, graph, models, [(x, None)], [alignment.NodeMoments()])
        ...     print(alignment.matched_correlation(stats[alignment.NodeMoments])["up"].round(2))
        [-0.82]
        [1.]
    """
    check_moments(moments, "matched_correlation")
    if any(len(m.mean) < 2 for m in moments.values()):
        raise ValueError("matched_correlation compares the other models with the first: got moments of one model")
    return {node: _matched(m) for node, m in moments.items()}


def _matched(m: Moments) -> Float[np.ndarray, " others"]:
    spread, alive = deviation(m), living(m)
    both = alive[:1] & alive[1:]
    cross = np.diagonal(np.asarray(m.cross, np.float64)[1:], axis1=-2, axis2=-1)
    each = np.where(both, cross / np.where(both, spread[:1] * spread[1:], 1), 0).reshape(len(both), -1)
    return each.sum(-1) / np.maximum(both.reshape(len(both), -1).sum(-1), 1)


def assign_living(
    scores: Float[np.ndarray, "places units"], ours: Bool[np.ndarray, " places"], theirs: Bool[np.ndarray, " units"]
) -> Int[np.ndarray, " places"]:
    """Linear assignment of the living units to the living places; what is left over stays, or is paired in ascending order.

    Units that fit other places no better than their own, to the rounding of scores in float32, stay as well.
    """
    places, units = np.flatnonzero(ours), np.flatnonzero(theirs)
    alive = scores[np.ix_(places, units)]
    alive = alive + ROUNDING * np.abs(alive).max(initial=0) * np.equal.outer(places, units)
    if len(places) <= len(units):
        units = units[assign(alive)]
    else:
        places = places[assign(alive.T)]
    index = np.full(len(scores), -1)
    index[places] = units
    left = np.setdiff1d(np.arange(len(scores)), units)
    still = left[index[left] < 0]
    index[still] = still
    index[index < 0] = np.setdiff1d(left, still)
    return index


class Spectrum(NamedTuple):
    """The eigenvalues and eigenvectors of a covariance, and which of them hold more than rounding."""

    values: Float[np.ndarray, " n"]
    vectors: Float[np.ndarray, "n n"]
    alive: Bool[np.ndarray, " n"]

    def power(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
        """The symmetric matrix with other eigenvalues."""
        return (self.vectors * values) @ self.vectors.T

    def whitening(self) -> Float[np.ndarray, "n n"]:
        """The inverse square root on the directions that are alive, zero on the others."""
        return self.power(np.where(self.alive, 1 / np.sqrt(np.where(self.alive, self.values, 1)), 0))


def spectrum(covariance: Float[np.ndarray, "n n"]) -> Spectrum:
    """In float64; eigenvalues below 1e-6 of the largest are rounding of float32 moments."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return Spectrum(values, vectors, values > 1e-6 * max(values.max(initial=0), 1e-30))
