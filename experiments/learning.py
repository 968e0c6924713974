"""Learning as experiments do it: every learned row and its control get the same data, steps and tuning."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import npmerge as nm
from alignment.graph import PyTree
from npmerge.fitting.fit import Loss

MOMENTS = optax.scale_by_adam()


class AdamState(NamedTuple):
    """The state of `adam`.

    Attributes:
        moments: of the gradient.
        rate: at the start.
        steps: until it is zero.
        done: steps so far.
    """

    moments: optax.OptState
    rate: Float[Array, ""]
    steps: Float[Array, ""]
    done: Float[Array, ""]


@dataclass(frozen=True)
class Started:
    """What starts `adam`. Rate and steps go into the state and are no part of its identity, so rates share a step."""

    rate: float = field(compare=False)
    steps: int = field(compare=False)

    def __call__(self, theta: PyTree) -> AdamState:
        """The state before the first step."""
        return AdamState(MOMENTS.init(theta), *map(jnp.float32, (self.rate, self.steps, 0)))


def adam(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam whose rate falls to zero along a cosine. One compiled step serves all rates and numbers of steps.

    Args:
        rate: at the start.
        steps: until it is zero.
    """
    return optax.GradientTransformation(Started(rate, steps), _updates)


def _updates(gradient: PyTree, state: AdamState, theta: PyTree | None = None) -> tuple[PyTree, AdamState]:
    updates, moments = MOMENTS.update(gradient, state.moments, theta)
    rate = state.rate * (1 + jnp.cos(jnp.pi * jnp.minimum(state.done / state.steps, 1))) / 2
    return jax.tree.map(lambda x: -rate * x, updates), state._replace(moments=moments, done=state.done + 1)


class Tuned(NamedTuple):
    """What was learned at the best of the rates.

    Attributes:
        theta: of the lowest loss on validation data, over all rates and moments.
        rate: that it was learned at.
        loss: its loss on validation data.
    """

    theta: PyTree
    rate: float
    loss: float


@dataclass(frozen=True)
class Budget:
    """What a learned row may use, and so may its control.

    Attributes:
        steps: of Adam, its rate falling to zero along a cosine.
        judgements: moments at which validation data are looked at, besides the start.
        further: rates at most that are tried beyond an end of the grid, while the best one lies there.
    """

    steps: int
    judgements: int = 4
    further: int = 0

    def tuned(
        self,
        theta: PyTree,
        loss: Loss,
        stack: Any,
        *,
        batches: Callable[[], Iterable[tuple]],
        held_out: Sequence[tuple],
        rates: Sequence[float],
        progress: Callable[[int, float], Any] | None = None,
    ) -> Tuned:
        """Learn theta at each rate, from the same batches, and keep what is best on validation data.

        Args:
            theta: where to start, which is kept if nothing is better.
            loss: as of `nm.fit`, and the same object for rows that differ in theta alone: it is compiled once.
            stack: what the loss takes besides.
            batches: called for each rate; must give the same batches again.
            held_out: validation data.
            rates: of Adam, at the start, in ascending order.
            progress: as of `nm.fit`.
        """
        every = max(1, self.steps // self.judgements)

        def learned(rate: float) -> Tuned:
            learn = functools.partial(nm.fit, steps=self.steps, every=every, held_out=held_out, progress=progress)
            result = learn(theta, loss, stack, batches(), adam(rate, self.steps))
            return Tuned(result.theta, rate, float(result.history.held_out_loss.min()))

        found = search(rates, learned, lambda tuned: badness(tuned.loss), self.further)
        return min(found.values(), key=lambda tuned: badness(tuned.loss))


def badness(loss: float) -> float:
    """A loss by which the best is chosen: one that is not a number is never the lowest."""
    return math.inf if math.isnan(loss) else loss


Found = TypeVar("Found")


def search(
    rates: Sequence[float], learn: Callable[[float], Found], lowest: Callable[[Found], Any], further: int = 0
) -> dict[float, Found]:
    """What is learned at each rate of a grid, and at rates beyond an end of it while the best one lies there; ascending.

    Args:
        rates: the grid, ascending.
        learn: at a rate.
        lowest: what the best has the lowest value of.
        further: rates at most beyond the grid.
    """
    found = {rate: learn(rate) for rate in rates}
    for _ in range(further):
        rate = beyond(sorted(found), min(found, key=lambda tried: lowest(found[tried])))
        if rate is None:
            break
        found[rate] = learn(rate)
    return dict(sorted(found.items()))


def beyond(rates: Sequence[float], best: float) -> float | None:
    """The next rate at the end of an ascending grid where its best one lies, as far away as that is from its neighbour.

    Args:
        rates: that were tried.
        best: one of them; if it is not at an end, or the only one, the answer is None.
    """
    if len(rates) < 2 or best not in (rates[0], rates[-1]):
        return None
    return float(f"{best**2 / (rates[1] if best == rates[0] else rates[-2]):.3g}")


def mean_shares(coefficients: PyTree, network: PyTree) -> Float[np.ndarray, " models"]:
    """The share of each model in a merge, (models,): the mean of its coefficients over all leaves.

    Args:
        coefficients: of the leaves of the network, each broadcast against (models, ...).
        network: arrays.
    """
    sums = jax.tree.map(lambda c, x: np.broadcast_to(c, (len(c), *x.shape)).reshape(len(c), -1).sum(1), coefficients, network)
    return np.sum(jax.tree.leaves(sums), axis=0) / sum(np.size(x) for x in jax.tree.leaves(network))


def told_further(further: int) -> str:
    """What `search` does, for a protocol."""
    return f", and up to {further} more beyond the end of a grid where the best one lies" if further else ""
