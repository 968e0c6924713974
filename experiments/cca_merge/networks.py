"""The networks of a group: trained once, measured together, aligned to any of them in any way."""

import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

import npmerge as nm
from alignment import CCA, ActivationMatching, OptimalTransport, Procrustes, WeightMatching, ZipIt
from alignment.activations.moments import Joint, JointMoments, NodeMoments, against_reference
from alignment.base import Alignment
from alignment.graph import PyTree
from experiments.cca_merge.folding import folded, scaled_as
from experiments.cca_merge.settings import PERMUTED, PLAIN, PROCRUSTES, TRANSPORT, WEIGHTS
from experiments.data import split
from experiments.parents import kept
from experiments.problem import Problem

FIXED: Mapping[str, Alignment | None] = {
    PLAIN: None,
    WEIGHTS: WeightMatching(),
    PERMUTED: ActivationMatching(),
    TRANSPORT: OptimalTransport(),
    PROCRUSTES: Procrustes(approximate=True),
}
"""The alignments of which nothing is chosen."""


class Networks:
    """Networks that are merged with each other.

    Args:
        problem: what they are trained on.
        division: of the training images among them, one of `experiments.data.SPLITS`.
        count: how many.
        folder: where trained networks are kept.
    """

    def __init__(self, problem: Problem, division: str, count: int, folder: Path):
        self.problem, self.division, self.count, self.folder = problem, division, count, folder

    @functools.cached_property
    def models(self) -> list[PyTree]:
        """Trained, with statistics of BatchNorm from the measured images."""
        p = self.problem
        parts = split(self.division, p.images.train.labels, self.count, seed=p.seed)
        among = "any" if self.division == "same" else self.count
        found = []
        for k, part in enumerate(parts):
            path = self.folder / f"{p.task.name}-{self.division}-{among}-{p.seed}-{k}.safetensors"
            network = kept(p, p.images.train.take(part), path, seed=1000 * p.seed + k, order=k)
            found.append(p.renewed(network))
        return found

    @functools.cached_property
    def joint(self) -> Mapping[str, Joint]:
        """Moments of the units of all networks together, on the measured images."""
        p = self.problem
        return nm.collect(p.network.apply, p.graph, self.models, p.measuring, [JointMoments()])[JointMoments]

    @functools.cached_property
    def logits(self) -> Float[np.ndarray, "models images classes"]:
        """Of each network on the test set."""
        return np.stack([np.concatenate([_logits(self, m, x) for x, _ in self.problem.test]) for m in self.models])

    @functools.cached_property
    def judged(self) -> list[nm.Metrics]:
        """Each network on validation data."""
        return [self.problem.judged(model) for model in self.models]

    def stats(self, order: Sequence[int]) -> dict[type, Any]:
        """Moments of some of the networks, in an order: the first is the reference."""
        joint = {node: among(m, self.count, order) for node, m in self.joint.items()}
        return {JointMoments: joint, NodeMoments: {node: against_reference(m, len(order)) for node, m in joint.items()}}

    @functools.cached_property
    def folded(self) -> list[PyTree]:
        """The models with BatchNorm's scale in their convolutions: the same functions, of the same moments."""
        return [folded(model) for model in self.models]

    def aligned(self, alignment: Alignment | None, order: Sequence[int], *, folded: bool = False) -> list[PyTree]:
        """Some of the networks, brought to the first of them."""
        models = [(self.folded if folded else self.models)[k] for k in order]
        if alignment is None:
            return models
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "approximate maps leave running statistics")  # re-estimated after the merge
            return nm.align(alignment, self.problem.graph, models, stats=self.stats(order))

    def merged(self, alignment: Alignment | None, order: Sequence[int], *, folded: bool = False) -> PyTree:
        """Their average, with statistics of its own; of folded networks with the scales of the first."""
        average = nm.Average()(nm.stack_models(self.aligned(alignment, order, folded=folded)))
        return self.problem.renewed(scaled_as(average, self.models[order[0]]) if folded else average)


def cca(gamma: float) -> Alignment:
    """CCA between units that ReLUs come after: it changes the function."""
    return CCA(gamma, approximate=True)


def zipped(alpha: float, beta: float) -> Alignment:
    """ZipIt."""
    return ZipIt(alpha=alpha, beta=beta)


def among(joint: Joint, count: int, order: Sequence[int]) -> Joint:
    """The moments of some of several models of one width, in an order."""
    mean, covariance = np.asarray(joint.mean), np.asarray(joint.covariance)
    units = mean.shape[-1] // count
    places = np.concatenate([np.arange(units) + units * k for k in order])
    return Joint(joint.samples, mean[..., places], covariance[..., places[:, None], places])


def _logits(networks: Networks, model: PyTree, inputs: np.ndarray) -> np.ndarray:
    return np.asarray(_run(networks.problem.network.apply, model, inputs))


@functools.partial(jax.jit, static_argnums=0)
def _run(apply: Any, variables: PyTree, inputs: jax.Array) -> jax.Array:
    return apply(variables, inputs)
