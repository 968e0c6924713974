"""Networks, some training images, and what is made of both: alignments, averages, PLeaS, and learned merges."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float

import npmerge as nm
from alignment import ActivationMatching, resize
from alignment.base import Alignment
from alignment.graph import PyTree
from experiments.data import Examples, augmented
from experiments.learning import Budget, mean_shares
from experiments.problem import Trained
from experiments.strangers.networks import Strangers
from experiments.strangers.ways import Way
from npmerge.fitting.fit import Loss
from npmerge.granularity import Granularity
from npmerge.models import example

TEMPERATURE = 2.0
"""Of the parents' predictions that a merge without labels learns from."""

BATCH = 500
"""Images of a batch where nothing is learned."""


class Sized(NamedTuple):
    """A merge of any size: its function and variables, and its operations in multiples of one network."""

    apply: Callable
    variables: PyTree
    operations: float


class Learned(NamedTuple):
    """A network that was learned.

    Attributes:
        network: with statistics of BatchNorm of its own.
        rate: of Adam.
        loss: on validation data.
        shares: of each network in it, means of its coefficients; none where weights were learned.
    """

    network: PyTree
    rate: float
    loss: float
    shares: list[float]


class Merging:
    """Some networks and some images. What is expensive is made when it is first asked for, and once.

    Args:
        strangers: the networks.
        images: a tenth of them, at most 1,000, are for validation.
        measured: of them at most that statistics are measured on.
        seed: of the order and the changes of training images.
        progress: told what is being done.
    """

    def __init__(self, strangers: Strangers, images: Examples, measured: int, seed: int, progress: Callable[[str], Any]):
        self.strangers, self.seed, self.progress = strangers, seed, progress
        cut = min(len(images.labels) // 10, 1000)
        self.validation, self.images = images.take(np.arange(cut)), images.take(np.arange(cut, len(images.labels)))
        few = self.images.take(np.arange(min(measured, len(self.images.labels))))
        self.unlabelled = nm.in_order(*few, min(BATCH, len(few.labels)))

    @functools.cached_property
    def stats(self) -> Any:
        """Moments of the units of all networks, on training images."""
        s = self.strangers
        self.progress("statistics")
        return nm.collect(s.network.apply, s.graph, s.models, self.unlabelled, [nm.NodeMoments(), nm.JointMoments()])

    @functools.cached_property
    def matched(self) -> nm.Stack:
        """The networks in the units of the first, by activation matching."""
        return self.aligned(ActivationMatching())

    @functools.cached_property
    def solved(self) -> PyTree:
        """PLeaS at the size of one network."""
        return self.pleas(1.0).variables

    @functools.cached_property
    def better(self) -> PyTree:
        """The parent of lower loss on validation data, as it was published."""
        judged = nm.in_order(*self.validation, BATCH)
        losses = [nm.evaluate(self.strangers.network.apply, model, judged).loss for model in self.strangers.models]
        return self.strangers.models[int(np.argmin(losses))]

    def aligned(self, alignment: Alignment) -> nm.Stack:
        """The networks in shared units."""
        s = self.strangers
        return nm.stack_models(nm.align(alignment, s.graph, s.models, stats=self.stats, key=jax.random.key(self.seed)))

    def renewed(self, variables: PyTree) -> PyTree:
        """With statistics of BatchNorm from training images."""
        return nm.reset_statistics(self.strangers.network.train_apply, variables, self.unlabelled)

    def repaired(self, stack: nm.Stack) -> PyTree:
        """The average with each channel rescaled as the parents have it."""
        s = self.strangers
        return nm.repair(s.network.apply, s.graph, nm.Average()(stack), stack.models(), self.unlabelled).variables

    def pleas(self, size: float, *, sequential: bool = True) -> Sized:
        """Partial matching and least squares, for a number of operations in multiples of one network."""
        s = self.strangers
        merge = nm.Pleas(ActivationMatching(), nm.LeastSquares(sequential=sequential))
        given = {"inputs": example(s.config, 1), "stats": self.stats, "batches": self.unlabelled}
        found = merge(s.network.apply, s.graph, s.models, size, train_apply=s.network.train_apply, **given)
        apply = resize(s.network.apply, s.graph, found.variables, found.widths)
        return Sized(apply, found.variables, found.allocation.cost)

    def learned(self, way: Way, budget: Budget, batch: int, rates: Sequence[float]) -> Learned:
        """A network that is learned in some way, at the rate that validation data choose of those given."""
        start, loss = self._start(way), self._loss(way)
        training, held_out = (self._taught(part, labels=way.labels) for part in (self.images, self.validation))
        batches = functools.partial(augmented, *training, min(batch, len(training.labels)), seed=self.seed)
        judged = nm.in_order(*held_out, min(BATCH, len(held_out.labels)))
        found = budget.tuned(start, loss, self.matched, batches=batches, held_out=judged, rates=rates, progress=self._tell)
        if way.granularity is None:
            return Learned(self.renewed(found.theta), found.rate, found.loss, [])
        merge = merge_of(way.granularity)
        network, coefficients = (f(found.theta, self.matched) for f in (merge.apply, merge.coefficients))
        return Learned(self.renewed(network), found.rate, found.loss, mean_shares(coefficients, network).tolist())

    def _loss(self, way: Way) -> Loss:
        outputs, objective = Trained(self.strangers.network.train_apply), _objective(labels=way.labels)
        if way.granularity is None:
            return nm.fine_tuning(outputs, objective)
        return nm.weight_space(merge_of(way.granularity), outputs, objective)

    def _start(self, way: Way) -> PyTree:
        if way.granularity is not None:
            return merge_of(way.granularity).init(self.matched)
        if way.start == "matched":
            return nm.Average()(self.matched)
        return self.solved if way.start == "solved" else self.better

    def _taught(self, images: Examples, *, labels: bool) -> Examples:
        """The images with their labels, or with what the parents predict in the place of labels."""
        return images if labels else images._replace(labels=self._predictions(images.inputs))

    def _predictions(self, images: np.ndarray) -> Float[np.ndarray, "n classes"]:
        """The mean of the parents' probabilities at TEMPERATURE."""
        parts = [images[k : k + BATCH] for k in range(0, len(images), BATCH)]
        s = self.strangers
        return np.concatenate([np.mean([_softened(s.network.apply, m, x) for m in s.models], axis=0) for x in parts])

    def _tell(self, step: int, loss: float) -> None:
        self.progress(f"step {step}, loss {loss:.3f}")


@functools.partial(jax.jit, static_argnums=0)
def _softened(apply: Callable, variables: PyTree, inputs: Array) -> Float[Array, "n classes"]:
    return jax.nn.softmax(apply(variables, inputs) / TEMPERATURE)


def distilled(logits: Float[Array, "n classes"], taught: Float[Array, "n classes"]) -> Float[Array, " n"]:
    """T^2 KL(taught || softmax(logits / T)) of each example (Hinton et al. 2015), T being TEMPERATURE."""
    return TEMPERATURE**2 * optax.losses.kl_divergence(jax.nn.log_softmax(logits / TEMPERATURE), taught)


def _objective(*, labels: bool) -> nm.Objective:
    return nm.CrossEntropy() if labels else nm.PerExample(distilled)


def merge_of(granularity: Granularity) -> nm.Learned:
    """From the average, on the simplex: NP Merge, with coefficients of any granularity."""
    return nm.Learned(nm.Average(), granularity, nm.Simplex())
