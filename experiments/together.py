"""Networks of one start, each trained on examples of its own, by one compiled program."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from alignment.graph import PyTree
from experiments.learning import adam

Loss = Callable[[PyTree, PyTree, PyTree], Float[Array, " n"]]
"""`loss(variables, inputs, targets)`, a value for each example."""

Change = Callable[[Array, PyTree, PyTree], tuple[PyTree, PyTree]]
"""`change(key, inputs, targets)`: what a step sees of a batch, such as images shifted at random or noise added."""


class Side(NamedTuple):
    """The examples of each network side by side, repeated until all networks have as many.

    Attributes:
        inputs: (models, n, ...), or a tree of such arrays.
        targets: likewise.
        counts: how many of them are different, for each network.
    """

    inputs: PyTree
    targets: PyTree
    counts: Int[np.ndarray, " models"]


@dataclass(frozen=True)
class Regime:
    """How networks are trained together.

    Attributes:
        rate: of Adam, at the start; it falls to zero along a cosine.
        steps: of each network.
        batch: examples of a step, drawn with replacement.
        moments: at which validation data are looked at, the start not included: each network keeps its best.
        at_once: networks that are computed side by side; 1 is best for processors, all of them for accelerators.
    """

    rate: float = 1e-3
    steps: int = 200
    batch: int = 32
    moments: int = 4
    at_once: int = 1


class Kept(NamedTuple):
    """Networks side by side, each at its best moment.

    Attributes:
        networks: a tree with leaves (models, ...).
        losses: of each network on its validation data, at the start and at each moment.
    """

    networks: PyTree
    losses: Float[Array, "models moments"]

    @property
    def each(self) -> list[PyTree]:
        """One network after another."""
        return [jax.tree.map(lambda x, k=k: x[k], self.networks) for k in range(len(self.losses))]


def side_by_side(parts: Sequence[tuple[PyTree, PyTree]]) -> Side:
    """The examples `(inputs, targets)` of each network, repeated until all have as many.

    Raises:
        ValueError: a network without examples.
    """
    counts = np.array([len(jax.tree.leaves(part)[0]) for part in parts])
    if not len(counts) or not counts.min():
        raise ValueError(f"every network needs examples: got {counts.tolist()}")
    places = [np.arange(counts.max()) % count for count in counts]
    filled = [jax.tree.map(lambda x, p=p: np.asarray(x)[p], tuple(part)) for p, part in zip(places, parts, strict=True)]
    inputs, targets = jax.tree.map(lambda *x: np.stack(x), *filled)
    return Side(inputs, targets, counts)


def unchanged(key: Array, inputs: PyTree, targets: PyTree) -> tuple[PyTree, PyTree]:
    """A batch as it is."""
    return inputs, targets


def train_together(
    start: PyTree, loss: Loss, train: Side, validation: Side, regime: Regime, *, seed: int, change: Change = unchanged
) -> Kept:
    """Train a network from `start` on each part, and keep it at its moment of lowest validation loss.

    Args:
        start: the variables of all of them.
        loss: a value for each example; one object for calls that are to share what is compiled.
        train: what each learns from.
        validation: what its moment is chosen by, as it is.
        regime: how.
        seed: of the draws.
        change: of each batch that is learned from, likewise one object.

    Example:
        >>> from experiments.together import Regime, side_by_side, train_together
        >>> parts = [(np.zeros((3, 1)), np.full(3, 1.0)), (np.zeros((2, 1)), np.full(2, -1.0))]
        >>> found = train_together(
        ...     {"b": jnp.zeros(())}, lambda v, x, y: jnp.square(v["b"] - y), side_by_side(parts), side_by_side(parts),
        ...     Regime(rate=0.1, steps=60, batch=2), seed=0,
        ... )
        >>> [round(float(network["b"])) for network in found.each]
        [1, -1]
    """
    parts = train, validation, jax.random.split(jax.random.key(seed), len(train.counts))
    kind = dataclasses.replace(regime, rate=0.0)  # rates share what is compiled
    return Kept(*_trained(start, jnp.float32(regime.rate), parts, loss=loss, change=change, regime=kind))


@functools.partial(jax.jit, static_argnames=("loss", "change", "regime"))
def _trained(
    start: PyTree, rate: Array, parts: tuple[Side, Side, Array], *, loss: Loss, change: Change, regime: Regime
) -> tuple[PyTree, Array]:
    optimizer = adam(1.0, regime.steps)

    def one(part: tuple[Side, Side, Array]) -> tuple[PyTree, Array]:
        train, validation, key = part

        def judged(variables: PyTree) -> Array:
            values = loss(variables, validation.inputs, validation.targets)
            counts = jnp.arange(len(values)) < validation.counts
            return jnp.where(counts, values, 0).sum() / validation.counts.astype(jnp.float32)

        def step(state: tuple, key: Array) -> tuple[tuple, None]:
            variables, memory = state
            drawing, changing = jax.random.split(key)
            places = jax.random.randint(drawing, (regime.batch,), 0, train.counts)
            inputs, targets = change(changing, *jax.tree.map(lambda x: x[places], (train.inputs, train.targets)))
            gradient = jax.grad(lambda v: loss(v, inputs, targets).mean())(variables)
            with jax.numpy_dtype_promotion("standard"):  # Optax counts in integers
                updates, memory = optimizer.update(gradient, memory, variables)
            return (optax.apply_updates(variables, updates), memory), None

        def moment(state: tuple, keys: Array) -> tuple[tuple, Array]:
            now, best, lowest = state
            now, _ = jax.lax.scan(step, now, keys)
            found = judged(now[0])
            best = jax.tree.map(lambda a, b: jnp.where(found < lowest, a, b), now[0], best)
            return (now, best, jnp.minimum(found, lowest)), found

        memory = optimizer.init(start)._replace(rate=rate)
        keys = jax.random.split(key, (regime.moments, max(1, regime.steps // regime.moments)))
        first = judged(start)
        (_, best, _), losses = jax.lax.scan(moment, ((start, memory), start, first), keys)
        return best, jnp.concatenate([first[None], losses])

    return jax.lax.map(one, parts, batch_size=regime.at_once if regime.at_once > 1 else None)
