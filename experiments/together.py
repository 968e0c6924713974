"""Networks of one start, each trained on examples of its own, by one compiled program for all."""

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
from experiments.learning import AdamState, adam

SIZES = tuple(256 * 4**k for k in range(12))
"""Of what networks learn from: few, as a program is compiled for each."""

OPTIMIZER = adam(1.0, 1)
"""Whose update reads rate and steps from its state."""

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

    @property
    def moments(self) -> list[int]:
        """The moment that each was kept at: 0 is the start."""
        return np.argmin(np.nan_to_num(np.asarray(self.losses), nan=np.inf), axis=1).tolist()


def side_by_side(parts: Sequence[tuple[PyTree, PyTree]]) -> Side:
    """The examples `(inputs, targets)` of each network, repeated until all have as many: one of SIZES.

    Raises:
        ValueError: a network without examples.
    """
    counts = np.array([len(jax.tree.leaves(part)[0]) for part in parts], np.int32)
    if not len(counts) or not counts.min():
        raise ValueError(f"every network needs examples: got {counts.tolist()}")
    size = next(size for size in SIZES if size >= counts.max())
    places = [np.arange(size) % count for count in counts]
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
    kind = dataclasses.replace(regime, rate=0.0, steps=0)  # those of any rate and number of steps share what is compiled
    every, groups = jnp.int32(max(1, regime.steps // regime.moments)), range(0, len(train.counts), regime.at_once)
    memory = adam(regime.rate, regime.steps).init(start)
    found = []
    for k in groups:
        group = jax.tree.map(lambda x, k=k: jnp.asarray(x[k : k + regime.at_once]), parts)
        found.append(_trained((start, memory), every, group, loss=loss, change=change, regime=kind))
    return Kept(*jax.tree.map(lambda *x: jnp.concatenate(x), *found))


@functools.partial(jax.jit, static_argnames=("loss", "change", "regime"))
def _trained(
    start: tuple[PyTree, AdamState],
    every: Array,
    parts: tuple[Side, Side, Array],
    *,
    loss: Loss,
    change: Change,
    regime: Regime,
) -> tuple[PyTree, Array]:
    """A group of networks, side by side."""

    def one(part: tuple[Side, Side, Array]) -> tuple[PyTree, Array]:
        train, validation, key = part

        def judged(variables: PyTree) -> Array:
            values = loss(variables, validation.inputs, validation.targets)
            counts = jnp.arange(len(values)) < validation.counts
            return jnp.where(counts, values, 0).sum() / validation.counts.astype(jnp.float32)

        def step(k: Array, state: tuple) -> tuple:
            variables, memory = state
            drawing, changing = jax.random.split(jax.random.fold_in(key, k))
            places = jax.random.randint(drawing, (regime.batch,), 0, train.counts)
            inputs, targets = change(changing, *jax.tree.map(lambda x: x[places], (train.inputs, train.targets)))
            gradient = jax.grad(lambda v: loss(v, inputs, targets).mean())(variables)
            with jax.numpy_dtype_promotion("standard"):  # Optax counts in integers
                updates, memory = OPTIMIZER.update(gradient, memory, variables)
            return optax.apply_updates(variables, updates), memory

        def moment(state: tuple, k: Array) -> tuple[tuple, Array]:
            now, best, lowest = state
            now = jax.lax.fori_loop(k * every, (k + 1) * every, step, now)
            found = judged(now[0])
            best = jax.tree.map(lambda a, b: jnp.where(found < lowest, a, b), now[0], best)
            return (now, best, jnp.minimum(found, lowest)), found

        first = judged(start[0])
        (_, best, _), losses = jax.lax.scan(moment, (start, start[0], first), jnp.arange(regime.moments))
        return best, jnp.concatenate([first[None], losses])

    if regime.at_once > 1:
        return jax.vmap(one)(parts)
    return jax.tree.map(lambda x: x[None], one(jax.tree.map(lambda x: x[0], parts)))
