"""How the units of two networks correlate, layer by layer: one by one, and in their best linear combinations."""

from typing import Any

import numpy as np
from jaxtyping import Float

import npmerge as nm
from alignment import ActivationMatching
from alignment.activations.correlation import correlation, living, spectrum
from alignment.activations.moments import Moments, NodeMoments
from alignment.graph import PyTree
from experiments.cca_merge.networks import Networks
from npmerge.models import example


def spectra(networks: Networks) -> dict[str, dict[str, Any]]:
    """By node, of the first two networks.

    In the order in which a forward pass has their features. `canonical` are the canonical correlations, `matched` those of
    living units that a permutation pairs, both falling; `chance` is the mean canonical correlation where the second network
    sees the images in another order; `explained` is the share of the variance of the first network's units that linear maps of
    all units of the second explain, `explained_by_match` that of the one unit each is paired with.
    """
    p = networks.problem
    moments, by_chance = networks.stats([0, 1])[NodeMoments], _other_images(networks)
    found = {}
    for node in sorted(moments, key=lambda node: p.graph.taps[node].location):
        pair = moments[node]
        index = ActivationMatching().solve(pair)
        matched = np.take_along_axis(correlation(pair), np.asarray(index)[:, None], 1)[:, 0]
        alive = living(pair)
        pairs = matched[alive[0] & alive[1][index]]  # no canonical correlation counts dead units either
        variance = np.diagonal(np.asarray(pair.covariance[0], np.float64))
        found[node] = {
            "units": len(variance),
            "canonical": _rounded(canonical(pair)),
            "matched": _rounded(np.sort(pairs)[::-1]),
            "chance": round(float(canonical(by_chance[node]).mean()), 4),
            "explained": round(explained(pair), 4),
            "explained_by_match": round(float(matched**2 @ variance / max(variance.sum(), 1e-30)), 4),
        }
    return found


def canonical(m: Moments) -> Float[np.ndarray, " directions"]:
    """The canonical correlations of two models, falling: of the directions that vary in both."""
    ours, theirs = (spectrum(np.asarray(c, np.float64)) for c in m.covariance)
    seen = ours.whitening() @ np.asarray(m.cross[1], np.float64) @ theirs.whitening()
    rank = min(ours.alive.sum(), theirs.alive.sum())
    return np.minimum(np.linalg.svd(seen, compute_uv=False)[:rank], 1)


def explained(m: Moments) -> float:
    """The share of the variance of the first model's units that least squares on those of the second explain."""
    white = np.asarray(m.cross[1], np.float64) @ spectrum(np.asarray(m.covariance[1], np.float64)).whitening()
    return float(np.square(white).sum() / max(np.trace(np.asarray(m.covariance[0], np.float64)), 1e-30))


def _other_images(networks: Networks) -> dict[str, Moments]:
    """The moments of the first two networks, where the second sees each batch from its last image to its first."""
    p = networks.problem
    apply, models = p.network.apply, networks.models[:2]

    def backwards(variables: PyTree, inputs: Any) -> PyTree:
        return apply(variables, inputs[::-1])

    graphs = [p.graph, nm.trace(backwards, models[1], example(p.config))]
    return nm.collect([apply, backwards], graphs, models, p.measuring, [NodeMoments()])[NodeMoments]


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in values]
