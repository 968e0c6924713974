"""Networks that are asked for one category at a time, and how good they are in each cell."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from alignment.graph import PyTree
from experiments.compositional.cells import Part, joined
from experiments.compositional.grid import Cell

MASKED = -1e9


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
        owner = np.repeat(np.arange(len(self.classes)), self.classes)
        asked = inputs["category"][:, None] == jnp.asarray(owner)[None]
        return jnp.where(asked, self.network(variables, inputs["x"]), MASKED)


@dataclass(frozen=True)
class CrossEntropies:
    """The cross entropy of each example. Equal for equal networks, so compiled once."""

    apply: Callable[[PyTree, PyTree], Array]

    def __call__(self, variables: PyTree, inputs: PyTree, targets: Array) -> Float[Array, " n"]:
        """In nats."""
        return optax.softmax_cross_entropy_with_integer_labels(self.apply(variables, inputs), targets)


class Scores(NamedTuple):
    """How good a network is in each cell.

    Attributes:
        accuracy: the share of examples it has right, or of what it makes that is judged right.
        loss: the mean over the examples.
    """

    accuracy: Mapping[Cell, float]
    loss: Mapping[Cell, float]

    def mean(self, cells: Sequence[Cell]) -> tuple[float, float]:
        """Accuracy and loss, the mean over cells."""
        return tuple(float(np.mean([values[cell] for cell in cells])) for values in self)  # type: ignore[return-value]


class Judge:
    """Examples of several cells in one array, so that a network is judged in all of them by one program.

    Args:
        parts: of the cells.
        size: examples that are computed at once.
    """

    def __init__(self, parts: Mapping[Cell, Part], size: int = 256):
        self.cells, whole = list(parts), joined(list(parts.values()))
        self.counts = [len(part) for part in parts.values()]
        count = len(whole)
        size = min(size, count)
        places = np.arange(-(-count // size) * size) % count
        self.chunks = jax.tree.map(lambda x: jnp.asarray(x[places].reshape(-1, size, *x.shape[1:])), tuple(whole))

    def __call__(self, apply: Callable[[PyTree, PyTree], Array], variables: PyTree) -> Scores:
        """The scores in all cells."""
        ends = np.cumsum(self.counts)
        hits, losses = (np.asarray(x).ravel()[: ends[-1]] for x in judged(apply, variables, self.chunks))
        means = [[float(part.mean()) for part in np.split(values, ends[:-1])] for values in (hits, losses)]
        return Scores(*(dict(zip(self.cells, each, strict=True)) for each in means))


@functools.partial(jax.jit, static_argnums=0)
def judged(
    apply: Callable[[PyTree, PyTree], Array], variables: PyTree, chunks: tuple
) -> tuple[Float[Array, "chunks size"], Float[Array, "chunks size"]]:
    """For each example whether its class is right, and the loss."""

    def chunk(pair: tuple[PyTree, Int[Array, " size"]]) -> tuple[Array, Array]:
        logits = apply(variables, pair[0])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, pair[1])
        return (logits.argmax(-1) == pair[1]).astype(jnp.float32), loss

    return jax.lax.map(chunk, chunks)


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
