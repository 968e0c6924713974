"""Learning as experiments do it: every learned row and its control get the same data, steps and rule of tuning."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

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
            return Tuned(result.theta, rate, lowest(result.history.held_out_loss))

        return search(rates, learned, lambda tuned: tuned.loss, self.further).best


def lowest(losses: Float[np.ndarray, " moments"]) -> float:
    """The lowest of those that are finite, infinity where none is."""
    return float(np.min(losses, where=np.isfinite(losses), initial=np.inf))


Result = TypeVar("Result")


class Searched(NamedTuple, Generic[Result]):
    """What came of a search over rates.

    Attributes:
        found: what was learned at each rate that was tried, ascending.
        rate: the best one.
    """

    found: dict[float, Result]
    rate: float

    @property
    def best(self) -> Result:
        """What was learned at the best rate."""
        return self.found[self.rate]


def search(
    rates: Sequence[float], learn: Callable[[float], Result], loss: Callable[[Result], float], further: int = 0
) -> Searched[Result]:
    """Learn at each rate of a grid, and at rates beyond an end of it while the best one lies there, if they differ at all.

    Args:
        rates: the grid.
        learn: at a rate.
        loss: of what was learned; the lowest is the best, of equal ones that of the lowest rate, and what is not finite never.
        further: rates at most beyond the grid.

    Raises:
        ValueError: nothing that was learned has a finite loss.
    """

    def badness(rate: float) -> float:
        value = loss(found[rate])
        return value if math.isfinite(value) else math.inf

    found = {rate: learn(rate) for rate in dict.fromkeys(rates)}
    best = min(sorted(found), key=badness)
    for _ in range(further):
        rate = beyond(sorted(found), best)
        nowhere = all(badness(tried) == badness(best) for tried in found)  # such as where nothing is better than the start
        if rate is None or rate in found or nowhere or math.isinf(badness(best)):
            break
        found[rate] = learn(rate)
        best = min(sorted(found), key=badness)
    if math.isinf(badness(best)):
        raise ValueError(f"no rate of {', '.join(f'{rate:g}' for rate in sorted(found))} has a finite loss on validation data")
    return Searched(dict(sorted(found.items())), best)


def beyond(rates: Sequence[float], best: float) -> float | None:
    """The next rate at the end of an ascending grid where its best one lies, further by the factor to its neighbour.

    Args:
        rates: that were tried, above zero.
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
