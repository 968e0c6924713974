"""Learning as experiments do it: every learned row and its control get the same data, steps and tuning."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import optax

import npmerge as nm
from alignment.graph import PyTree
from npmerge.fitting.fit import Loss


@functools.lru_cache(maxsize=256)
def adam(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam whose rate falls to zero along a cosine. One object each: a compiled step is found again by the optimiser's identity."""
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


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
    """

    steps: int
    judgements: int = 4

    def tuned(
        self,
        theta: PyTree,
        loss: Loss,
        stack: Any,
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
            rates: of Adam, at the start.
            progress: as of `nm.fit`.
        """
        every, found = max(1, self.steps // self.judgements), []
        for rate in rates:
            learn = functools.partial(nm.fit, steps=self.steps, every=every, held_out=held_out, progress=progress)
            result = learn(theta, loss, stack, batches(), adam(rate, self.steps))
            found.append(Tuned(result.theta, rate, float(result.history.held_out_loss.min())))
        return found[int(np.nanargmin([f.loss for f in found]))]
