"""A task with its data and its network as functions, for one seed: what all rows of it share."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import npmerge as nm
from alignment.graph import Graph, PyTree
from experiments.data import Examples, Images, augmented, labelled
from experiments.np_merge.settings import Task
from npmerge.models import Config, build, example

LARGE = 500
"""Images of a batch that is measured."""


@dataclass(frozen=True)
class Trained:
    """The outputs of training mode: learning takes the statistics of each batch. Equal for equal networks, so compiled once."""

    train_apply: Callable[[PyTree, jax.Array], tuple[jax.Array, PyTree]]

    def __call__(self, variables: PyTree, inputs: jax.Array) -> jax.Array:
        """Logits."""
        return self.train_apply(variables, inputs)[0]


class Problem:
    """A task for one seed.

    Attributes:
        task: what it is of.
        images: its data; training images in one order for all seeds, of which seeds draw theirs.
        seed: of everything that is drawn.
        config: the architecture for these data.
    """

    def __init__(self, task: Task, images: Images, seed: int):
        self.task, self.images, self.seed = task, images, seed
        side, channels = images.train.inputs.shape[1], images.train.inputs.shape[-1]
        shape = {"side": side, "channels": channels, "classes": int(images.train.labels.max()) + 1}
        self.config: Config = dataclasses.replace(task.config, **shape)  # type: ignore[type-var]
        self.network = build(self.config, seed=1000 * seed)
        self.outputs = Trained(self.network.train_apply)
        self.objective = nm.CrossEntropy()
        self.loss = nm.fine_tuning(self.outputs, self.objective)

    @functools.cached_property
    def graph(self) -> Graph:
        """Which units are alike in it."""
        return nm.trace(self.network.apply, self.network.variables, example(self.config))

    @functools.cached_property
    def validation(self) -> Sequence[tuple]:
        """What every choice is made by."""
        return _batches(self.images.validation, self.task.judged)

    @functools.cached_property
    def test(self) -> Sequence[tuple]:
        """Read once for each row; a part of it has all classes alike, in whatever order the files have them."""
        labels = self.images.test.labels
        most = min(self.task.tested or len(labels), len(labels))
        return _batches(self.images.test.take(labelled(labels, most, seed=0)), None)

    @functools.cached_property
    def measuring(self) -> Sequence[tuple]:
        """Training images for activations and BatchNorm, whose labels nobody reads."""
        return _batches(self.images.train, self.task.measured, 250)

    def labelled(self, count: int) -> Examples:
        """The images that a merge learns from: the first of one order for each seed, so that few are among many."""
        return self.images.train.take(labelled(self.images.train.labels, count, seed=self.seed))

    def batches(self, examples: Examples, size: int, seed: int) -> Iterator[tuple]:
        """Of the images, without end, the same for the same seed."""
        return (augmented if self.task.augment else nm.shuffled)(*examples, size, seed=seed)

    def initial(self, seed: int) -> PyTree:
        """An untrained network."""
        return build(self.config, seed=seed).variables

    def renewed(self, variables: PyTree) -> PyTree:
        """With statistics of BatchNorm from the measured images; the network itself if it has none."""
        return nm.reset_statistics(self.network.train_apply, variables, self.measuring)

    def judged(self, variables: PyTree) -> float:
        """The loss on validation data."""
        return nm.evaluate(self.network.apply, variables, self.validation).loss

    def tested(self, variables: PyTree, apply: Callable[..., Any] | None = None) -> nm.Metrics:
        """Accuracy and loss on the test set."""
        return nm.evaluate(apply or self.network.apply, variables, self.test)


def _batches(examples: Examples, most: int | None, size: int = LARGE) -> list[tuple]:
    count = min(len(examples.labels), most or len(examples.labels))
    return nm.in_order(*examples.take(np.arange(count)), min(size, count))
