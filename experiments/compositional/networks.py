"""Networks that are asked for one category at a time, and how good they are in each cell."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from scipy import special, stats

from alignment.graph import PyTree
from experiments.compositional.cells import Part, joined
from experiments.compositional.grid import Cell
from experiments.together import Change

MASKED = -1e9

FEATURES = 32
"""Outputs behind those for categories: by them the base tells what belongs together."""

TEMPERATURE = 0.1


@dataclass(frozen=True)
class Asked:
    """A network whose outputs belong to categories: logits of those that are not asked for are as good as impossible.

    Attributes:
        network: `network(variables, x) -> logits` of the classes of all categories.
        classes: how many classes each category has, in order.
    """

    network: Callable[[PyTree, Array], Array]
    classes: tuple[int, ...]

    def __call__(self, variables: PyTree, inputs: Mapping[str, Array]) -> Float[Array, "n classes"]:
        """The logits for `inputs["x"]`, each asked for `inputs["category"]`."""
        return self.masked(self.network(variables, inputs["x"]), inputs["category"])

    def masked(self, logits: Float[Array, "n classes"], category: Int[Array, " n"]) -> Float[Array, "n classes"]:
        """Without the classes of other categories than the one that is asked for."""
        owner = np.repeat(np.arange(len(self.classes)), self.classes)
        return jnp.where(category[:, None] == jnp.asarray(owner)[None], logits, MASKED)


@dataclass(frozen=True)
class CrossEntropies:
    """The cross entropy of each example. Equal for equal networks, so compiled once."""

    apply: Callable[[PyTree, PyTree], Array]

    def __call__(self, variables: PyTree, inputs: PyTree, targets: Array) -> Float[Array, " n"]:
        """In nats."""
        return optax.softmax_cross_entropy_with_integer_labels(self.apply(variables, inputs), targets)


@dataclass(frozen=True)
class Pretraining:
    """What the base learns: classes, and which examples belong together, such as a sentence and its translation.

    The last category of `asked` are features. Examples of it have a partner, and are to be closer to it than to the partners of
    others in the batch: InfoNCE (van den Oord et al. 2018, equation 4) on cosines. It takes the place of the pretraining that
    the paper's networks had: without it what is learned in one domain hardly holds in another one.
    """

    asked: Asked

    def __call__(self, variables: PyTree, inputs: PyTree, targets: Array) -> Float[Array, " n"]:
        """In nats; `inputs["partner"]` is like `inputs["x"]`, and is not looked at where classes are asked for."""
        count, cross = len(targets), optax.softmax_cross_entropy_with_integer_labels
        outputs = self.asked.network(variables, jnp.concatenate([inputs["x"], inputs["partner"]]))
        features = outputs[:, -self.asked.classes[-1] :]
        features = features * jax.lax.rsqrt(jnp.square(features).sum(1, keepdims=True) + 1e-6)
        paired = inputs["category"] == len(self.asked.classes) - 1
        cosines = features[:count] @ features[count:].T
        told = cross(self.asked.masked(outputs[:count], inputs["category"]), targets)
        return jnp.where(paired, cross(jnp.where(paired[None], cosines / TEMPERATURE, MASKED), jnp.arange(count)), told)


class Scores(NamedTuple):
    """How good a network is in each cell.

    Attributes:
        accuracy: the share of examples it has right, or of what it makes that is judged right.
        loss: the mean over the examples.
        counts: how many examples there are.
        auroc: the area under the ROC curve, of cells that ask for classes and have examples of two.
    """

    accuracy: Mapping[Cell, float]
    loss: Mapping[Cell, float]
    counts: Mapping[Cell, int]
    auroc: Mapping[Cell, float]

    def mean(self, cells: Sequence[Cell]) -> tuple[float, float]:
        """Accuracy and loss, the mean over cells."""
        accuracy, loss = (float(np.mean([values[cell] for cell in cells])) for values in (self.accuracy, self.loss))
        return accuracy, loss

    def mean_auroc(self, cells: Sequence[Cell]) -> float | None:
        """The mean over the cells that have one, None where none has."""
        found = [self.auroc[cell] for cell in cells if cell in self.auroc]
        return float(np.mean(found)) if found else None

    def standard_error(self, cells: Sequence[Cell]) -> float:
        """That of the mean accuracy, by the number of examples in each cell."""
        variances = [self.accuracy[cell] * (1 - self.accuracy[cell]) / self.counts[cell] for cell in cells]
        return float(np.sqrt(np.sum(variances)) / len(cells))


def scores_of(cells: Mapping[Cell, int], hits: Iterable[np.ndarray], losses: Iterable[np.ndarray]) -> Scores:
    """Without AUROC, the values of each example by cell.

    Args:
        cells: and how many examples each has.
        hits: whether they are right.
        losses: of them.
    """
    accuracy, loss = (dict(zip(cells, (float(np.mean(x)) for x in each), strict=True)) for each in (hits, losses))
    return Scores(accuracy, loss, dict(cells), {})


class Judge:
    """Examples of several cells in one array, so that a network is judged in all of them by one program.

    Args:
        parts: of the cells.
        size: examples that are computed at once.
    """

    def __init__(self, parts: Mapping[Cell, Part], size: int = 256):
        whole = joined(list(parts.values()))
        self.counts = {cell: len(part) for cell, part in parts.items()}
        self.targets = [part.targets for part in parts.values()]
        count = len(whole)
        size = min(size, count)
        places = np.arange(-(-count // size) * size) % count
        self.chunks = jax.tree.map(lambda x: jnp.asarray(x[places].reshape(-1, size, *x.shape[1:])), tuple(whole))

    def __call__(self, apply: Callable[[PyTree, PyTree], Array], variables: PyTree) -> Scores:
        """The scores in all cells."""
        ends = np.cumsum(list(self.counts.values()))
        found = (np.asarray(x) for x in judged(apply, variables, self.chunks))
        hits, losses, logits = (np.split(x.reshape(-1, *x.shape[2:])[: ends[-1]], ends[:-1]) for x in found)
        areas = zip(self.counts, map(auroc, logits, self.targets), strict=True)
        known = {cell: area for cell, area in areas if area is not None}
        return scores_of(self.counts, hits, losses)._replace(auroc=known)


@functools.partial(jax.jit, static_argnums=0)
def judged(
    apply: Callable[[PyTree, PyTree], Array], variables: PyTree, chunks: tuple
) -> tuple[Float[Array, "chunks size"], Float[Array, "chunks size"], Float[Array, "chunks size classes"]]:
    """For each example whether its class is right, the loss, and the logits."""

    def chunk(pair: tuple[PyTree, Int[Array, " size"]]) -> tuple[Array, Array, Array]:
        logits = apply(variables, pair[0])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, pair[1])
        return (logits.argmax(-1) == pair[1]).astype(jnp.float32), loss, logits

    return jax.lax.map(chunk, chunks)


def auroc(logits: Float[np.ndarray, "n classes"], targets: Int[np.ndarray, " n"]) -> float | None:
    """The area under the ROC curve, the mean over the classes that are there, each against the others; None for one class.

    For two classes it asks how often an example of the one looks more like it than an example of the other: wherever the
    threshold between them lies. A logit that is not finite counts as the lowest.
    """
    classes = np.unique(targets)
    if len(classes) < 2:
        return None
    chances = special.log_softmax(np.nan_to_num(logits.astype(np.float64), nan=MASKED), axis=1)
    return float(np.mean([_area(chances[:, k], targets == k) for k in classes]))


def _area(values: Float[np.ndarray, " n"], mine: Bool[np.ndarray, " n"]) -> float:
    """The share of pairs of one of mine and one of the others in which mine is higher; ties count half."""
    count = mine.sum()
    return float((stats.rankdata(values)[mine].sum() - count * (count + 1) / 2) / (count * (len(mine) - count)))


def moved(key: Array, inputs: Mapping[str, Array], targets: Array) -> tuple[dict[str, Array], Array]:
    """Images shifted at random by an eighth of their side at most, what is left free taken from the border."""
    images = inputs["x"]
    side = images.shape[1]
    most = side // 8
    padded = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    starts = jax.random.randint(key, (len(images), 2), 0, 2 * most + 1)

    def one(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(image, (start[0], start[1], 0), (side, side, image.shape[-1]))

    return {**inputs, "x": jax.vmap(one)(padded, starts)}, targets


@dataclass(frozen=True)
class Both:
    """Changes an example and its partner, each for itself. Equal for equal changes."""

    change: Change

    def __call__(self, key: Array, inputs: Mapping[str, Array], targets: Array) -> tuple[dict[str, Array], Array]:
        """The batch with both changed."""
        names = "x", "partner"
        pairs = zip(jax.random.split(key), names, strict=True)
        changed = [self.change(one, {"x": inputs[name]}, targets)[0]["x"] for one, name in pairs]
        return {**inputs, **dict(zip(names, changed, strict=True))}, targets
