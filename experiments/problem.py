"""A data set and an architecture as functions, for one seed: what the rows of an experiment share that trains networks."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import jax
import numpy as np

import npmerge as nm
from alignment.graph import Graph, PyTree
from experiments.data import Examples, Images, augmented, labelled, load, standardised
from npmerge.models import Config, build, example

LARGE = 500
"""Images of a batch that is measured."""


@dataclass(frozen=True)
class Training:
    """How a network is trained; all see as many steps, however many images they have.

    Attributes:
        optimizer: "adamw" with a rate that falls along a cosine, or "sgd" with momentum 0.9, a rate that rises for a fortieth
            of the steps and falls along a line, as published.
        rate: the highest.
        steps: of it.
        batch: images of a step.
        decay: of weights.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    rate: float = 3e-3
    steps: int = 400
    batch: int = 64
    decay: float = 1e-3


@dataclass(frozen=True)
class Task:
    """A data set and an architecture.

    Attributes:
        name: in the rows.
        data: the set, one of `experiments.data.CATALOGUE`.
        network: as pages tell it.
        config: the architecture; side, channels and classes are those of the data.
        training: of the networks.
        augment: whether images are flipped and cropped, in everything that is learned.
        measured: training images, without their labels, for activations and BatchNorm.
        images: training images at most.
        judged: validation images at most, by which everything is chosen.
        tested: test images at most.
    """

    name: str
    data: str
    network: str
    config: Config
    training: Training = Training()
    augment: bool = False
    measured: int = 1000
    images: int | None = None
    judged: int | None = 500
    tested: int | None = None


AnyTask = TypeVar("AnyTask", bound=Task)


@dataclass(frozen=True)
class Trained:
    """The outputs of training mode: learning takes the statistics of each batch. Equal for equal networks, so compiled once."""

    train_apply: Callable[[PyTree, jax.Array], tuple[jax.Array, PyTree]]

    def __call__(self, variables: PyTree, inputs: jax.Array) -> jax.Array:
        """Logits."""
        return self.train_apply(variables, inputs)[0]


class Problem(Generic[AnyTask]):
    """A task for one seed.

    Attributes:
        task: what it is of.
        images: its data; training images in one order for all seeds, of which seeds draw theirs.
        seed: of everything that is drawn.
        config: the architecture for these data.
    """

    def __init__(self, task: AnyTask, images: Images, seed: int):
        self.task, self.images, self.seed = task, first(images, task.images), seed
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
        return batched(self.images.validation, self.task.judged)

    @functools.cached_property
    def test(self) -> Sequence[tuple]:
        """Read once for each row; a part of it has all classes alike, in whatever order the files have them."""
        return alike(self.images.test, self.task.tested)

    @functools.cached_property
    def measuring(self) -> Sequence[tuple]:
        """Training images for activations and BatchNorm, whose labels nobody reads."""
        return batched(self.images.train, self.task.measured, 250)

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

    def judged(self, variables: PyTree) -> nm.Metrics:
        """Accuracy and loss on validation data."""
        return nm.evaluate(self.network.apply, variables, self.validation)

    def tested(self, variables: PyTree, apply: Callable[..., Any] | None = None) -> nm.Metrics:
        """Accuracy and loss on the test set."""
        return nm.evaluate(apply or self.network.apply, variables, self.test)


def images_of(tasks: Sequence[Task], folder: str, *, download: bool) -> dict[str, Images]:
    """The data sets of some tasks, by name; of a folder, or looked for where that is empty."""
    names = dict.fromkeys(task.data for task in tasks)
    return {name: standardised(load(name, folder or None, download=download)) for name in names}


def first(images: Images, most: int | None) -> Images:
    """With so many training images at most."""
    return images._replace(train=Examples(*(x[:most] for x in images.train)))


def batched(examples: Examples, most: int | None, size: int = LARGE) -> list[tuple]:
    """The first of some examples, in batches."""
    count = min(len(examples.labels), most or len(examples.labels))
    return nm.in_order(*examples.take(np.arange(count)), min(size, count))


def alike(examples: Examples, most: int | None, size: int = LARGE) -> list[tuple]:
    """Some examples of which every class has its share, in batches."""
    count = min(most or len(examples.labels), len(examples.labels))
    return batched(examples.take(labelled(examples.labels, count, seed=0)), None, size)


def told(training: Training) -> str:
    """A training, in words."""
    adamw, sgd = "AdamW, the rate falling along a cosine", "SGD, momentum 0.9, the rate rising and falling along lines"
    kind = {"adamw": adamw, "sgd": sgd}[training.optimizer]
    return f"{kind}, at {training.rate:g}, weight decay {training.decay:g}, {training.steps:,} steps of {training.batch}"
