"""The two networks of a task: trained once, measured on the images of a source, judged by the parts that they learned."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Float, Int

import npmerge as nm
from alignment import JointMoments, NodeMoments
from alignment.graph import PyTree
from experiments.data import Examples, labelled
from experiments.parents import kept
from experiments.pleas.functions import Function, joined
from experiments.pleas.parts import Part, alternating, other_images
from experiments.pleas.settings import OWN, Task
from experiments.problem import LARGE, Problem, batched

MEASURED = 250
"""Images of a batch of those that are measured."""


class Judged(NamedTuple):
    """How good a network is.

    Attributes:
        accuracy: among the classes of a part, the mean over both.
        loss: likewise, in nats.
        joint: accuracy among the classes of both parts; that above where they are the same.
        each: accuracy on each part.
    """

    accuracy: float
    loss: float
    joint: float
    each: list[float]


class Networks:
    """Two networks.

    Args:
        task: what they are trained on.
        parts: of the data, one for each.
        seed: of everything that is drawn.
        folder: where trained networks are kept.
        data: folder with the data sets; looked for where that is empty.
    """

    def __init__(self, task: Task, parts: tuple[Part, Part], seed: int, folder: Path, data: str = ""):
        self.task, self.parts, self.seed, self.folder, self.data = task, parts, seed, folder, data
        self.problems = [Problem(task, part.images, seed) for part in parts]
        self.config, self.network, self.graph = (getattr(self.problems[0], x) for x in ("config", "network", "graph"))
        self.classes: int = self.config.classes
        self.images, self.stats = functools.cache(self._images), functools.cache(self._stats)

    @functools.cached_property
    def models(self) -> list[PyTree]:
        """Trained, with statistics of BatchNorm from images of their own part."""
        return [problem.renewed(self._trained(problem, part)) for problem, part in zip(self.problems, self.parts, strict=True)]

    def _trained(self, problem: Problem, part: Part) -> PyTree:
        path = self.folder / f"{self.task.data}-{part.name}-{self.seed}.safetensors".replace(" ", "-")
        seed = 1000 * self.seed + part.number
        return kept(problem, problem.images.train, path, seed=seed, order=part.number)

    # ----------------------------------------------------------------------------------------------- what is read of the data

    def mixed(self, name: str, count: int | None) -> Examples:
        """So many examples of "train" or "validation", of either part in turn; where networks keep heads, labels go on."""
        parts = [getattr(problem.images, name) for problem in self.problems]
        few = [part.take(np.arange(len(part.labels))[: None if count is None else count // 2]) for part in parts]
        return alternating(*(self._labelled(k, part) for k, part in enumerate(few)))

    def _labelled(self, k: int, examples: Examples) -> Examples:
        return examples._replace(labels=examples.labels + k * self.classes * self.task.heads)

    def _images(self, source: str) -> Examples:
        """Those of a source, whose labels nothing reads: for matching, least squares, statistics and distillation."""
        count = self.task.measured
        if source == OWN:
            return self.mixed("train", count)
        return other_images(source, self.data, count, self.config.input_shape, seed=self.seed)

    def measuring(self, source: str, size: int = MEASURED) -> Sequence[tuple]:
        """They in whole batches, or in batches of a size but for the last."""
        return batched(self.images(source), None, size)

    def _stats(self, source: str) -> Any:
        """Moments of the units of both networks."""
        wanted = [NodeMoments(), JointMoments()]
        return nm.collect(self.network.apply, self.graph, self.models, self.measuring(source), wanted)

    @functools.cached_property
    def grams(self) -> Any:
        """What the layers of each network read, on images of its own part."""
        own = [batched(problem.images.train, self.task.measured // 2, MEASURED) for problem in self.problems]
        return nm.collect_each(self.network.apply, self.graph, self.models, own, [nm.InputGram()])

    @functools.cached_property
    def validation(self) -> Sequence[tuple]:
        """What every choice is made by, images of either part in turn."""
        return batched(self.mixed("validation", self.task.judged), None)

    # ------------------------------------------------------------------------------------------------------------ how good

    @functools.cached_property
    def test(self) -> list[Examples]:
        """Of each part, every class alike, labelled as the outputs of a merged network are."""
        found = []
        for k, problem in enumerate(self.problems):
            test = problem.images.test
            few = test.take(labelled(test.labels, min(self.task.tested or len(test.labels), len(test.labels)), seed=0))
            found.append(self._labelled(k, few))
        return found

    def tested(self, function: Function) -> Judged:
        """A network on the test images of both parts."""
        return self.judged([logits_of(function, test.inputs) for test in self.test])

    def judged(self, logits: Sequence[Float[np.ndarray, "images classes"]]) -> Judged:
        """What logits for the test images of both parts say."""
        found = [scored(of_part, test.labels, self.classes) for of_part, test in zip(logits, self.test, strict=True)]
        accuracy, loss, joint = np.mean(found, axis=0).tolist()
        return Judged(accuracy, loss, joint, [round(score[0], 4) for score in found])

    def validated(self, function: Function) -> float:
        """The loss on validation data, in nats."""
        losses = [scored(logits_of(function, x), y, self.classes)[1] for x, y in self.validation]
        return float(np.average(losses, weights=[len(y) for _, y in self.validation]))

    def taught(self, inputs: Float[np.ndarray, "images ..."]) -> Float[np.ndarray, "images outputs"]:
        """Logits of the ensemble; where networks keep their heads, of each network side by side."""
        functions = (Function(self.network.apply, model, self.network.train_apply) for model in self.models)
        logits: list[Any] = [logits_of(function, inputs) for function in functions]
        return np.asarray(joined(logits, apart=self.task.heads))

    def counts(self) -> dict[str, list[int]]:
        """How many images of each part there are to train, to choose and to judge, as they are used."""
        judging = [len(test.labels) for test in self.test]
        chosen = len(self.mixed("validation", self.task.judged).labels) // 2
        return {"train": [len(p.images.train.labels) for p in self.problems], "validation": [chosen] * 2, "test": judging}


def logits_of(function: Function, inputs: np.ndarray) -> Float[np.ndarray, "images classes"]:
    """For some images, batch by batch."""
    pieces = np.array_split(inputs, max(1, round(len(inputs) / LARGE)))
    return np.concatenate([np.asarray(_run(function.apply, function.variables, x)) for x in pieces])


def scored(logits: Float[np.ndarray, "n outputs"], labels: Int[np.ndarray, " n"], classes: int) -> tuple[float, float, float]:
    """Accuracy and cross entropy among the classes of each image's part, and accuracy among all."""
    part = np.arange(logits.shape[1]) // classes == (labels // classes)[:, None]
    within = np.where(part, logits, -np.inf)
    loss = optax.softmax_cross_entropy_with_integer_labels(within, labels).mean()
    return float((within.argmax(-1) == labels).mean()), float(loss), float((logits.argmax(-1) == labels).mean())


@functools.partial(jax.jit, static_argnums=0)
def _run(apply: Any, variables: PyTree, inputs: jax.Array) -> jax.Array:
    return apply(variables, inputs)


def rows_of(found: Judged) -> Mapping[str, Any]:
    """The columns of a row that say how good a network is."""
    return {name: round(x, 4) if isinstance(x, float) else x for name, x in found._asdict().items()}
