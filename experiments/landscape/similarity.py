"""CKA between networks by layer; and how it moves where no function does."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import npmerge as nm
from alignment import MinibatchCKA, capture, linear_cka
from alignment.graph import PyTree, flatten
from experiments.landscape.settings import BOTH, ONE, TENTH
from experiments.strangers.networks import Strangers


def similarities(networks: Strangers, one: PyTree, other: PyTree, batches: Sequence[tuple]) -> dict[str, float]:
    """Unbiased minibatch CKA of two networks, by node."""
    found = nm.collect(networks.network.apply, networks.graph, [one, other], batches, [MinibatchCKA()])[MinibatchCKA]
    return {node: float(values[1]) for node, values in found.items()}


class Readout(NamedTuple):
    """What the last layer of a network reads, and what it makes of it.

    Attributes:
        features: of each image.
        weight: of the layer.
        bias: likewise.
    """

    features: Float[np.ndarray, "n units"]
    weight: Float[np.ndarray, "units classes"]
    bias: Float[np.ndarray, " classes"]

    @property
    def logits(self) -> Float[np.ndarray, "n classes"]:
        """The outputs."""
        return self.features @ self.weight + self.bias

    def moved(self, images: Sequence[int], distance: float) -> "Readout":
        """With the features of some images moved along a direction that the layer does not read, in their own deviations."""
        unread = np.linalg.svd(self.weight)[0][:, -1]
        centred = self.features - self.features.mean(0)
        features = self.features.copy()
        features[list(images)] += distance * np.sqrt(np.square(centred).sum(1).mean()) * unread
        return self._replace(features=features)


def readout(networks: Strangers, variables: PyTree, inputs: np.ndarray) -> Readout:
    """Of the last layer, in float64. What is added there is what the logits have beyond the product."""
    site, apply = networks.graph.sites[-1], networks.network.apply
    seen = capture(apply, networks.graph, variables, inputs, nodes=(), sites=[site.name]).sites[site.name]
    weight = site.matrix(jnp.asarray(flatten(variables)[site.name]))
    bias = (apply(variables, jnp.asarray(inputs)) - seen.inputs @ weight).mean(0)
    return Readout(*(np.asarray(x, np.float64) for x in (seen.inputs, weight, bias)))


def caveats(a: Readout, b: Readout, labels: np.ndarray, distances: Sequence[float]) -> Iterator[dict[str, Any]]:
    """CKA before and after features move along what no layer reads: outputs stay as they are, and CKA does not.

    `ONE` and `TENTH` compare a network with itself so moved; `BOTH` two networks, one image moved in each of them.

    Args:
        a: of one network.
        b: of another one, on the same images.
        labels: of the images.
        distances: how far features are moved.
    """
    few = range(max(1, len(labels) // 10))
    for distance in distances:
        for what, before, after in (
            (ONE, (a, a), (a, a.moved([0], distance))),
            (TENTH, (a, a), (a, a.moved(few, distance))),
            (BOTH, (a, b), (a.moved([0], distance), b.moved([0], distance))),
        ):
            change = max(np.abs(y.logits - x.logits).max() for x, y in zip(before, after, strict=True))
            yield {
                "what": what,
                "distance": distance,
                "cka_before": _cka(*before, unbiased=True),
                "cka": _cka(*after, unbiased=True),
                "biased_before": _cka(*before, unbiased=False),
                "biased": _cka(*after, unbiased=False),
                "accuracy_before": _accuracy(before[1], labels),
                "accuracy": _accuracy(after[1], labels),
                "change": float(change / np.abs(before[0].logits).max()),
            }


def _cka(x: Readout, y: Readout, *, unbiased: bool) -> float:
    pair = (jnp.asarray(r.features, jnp.float32) for r in (x, y))
    return round(float(linear_cka(*pair, unbiased=unbiased)), 4)


def _accuracy(found: Readout, labels: np.ndarray) -> float:
    return float((found.logits.argmax(-1) == labels).mean())
