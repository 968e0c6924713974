"""Arrays as batches: in order for measuring, shuffled without end for learning."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Array, Shaped


def in_order(
    inputs: Shaped[Array | np.ndarray, "n ..."], targets: Shaped[Array | np.ndarray, "n ..."], size: int
) -> list[tuple]:
    """All examples once, in order; the last batch may be smaller. Raises ValueError if the lengths differ or are zero."""
    _check(inputs, targets, size)
    return [(inputs[k : k + size], targets[k : k + size]) for k in range(0, len(inputs), size)]


def shuffled(
    inputs: Shaped[Array | np.ndarray, "n ..."], targets: Shaped[Array | np.ndarray, "n ..."], size: int, *, seed: int
) -> Iterator[tuple]:
    """Batches of exactly `size` without end: one random order after another, cut without regard to its borders.

    Few examples thus fill large batches by repetition, and every example is seen equally often up to one.
    """
    _check(inputs, targets, size)
    rng = np.random.default_rng(seed)
    waiting = np.empty(0, np.int64)
    while True:
        while len(waiting) < size:
            waiting = np.concatenate([waiting, rng.permutation(len(inputs))])
        chosen, waiting = waiting[:size], waiting[size:]
        yield inputs[chosen], targets[chosen]


def _check(inputs: Array | np.ndarray, targets: Array | np.ndarray, size: int) -> None:
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(f"inputs and targets must have one equal, positive length: got {len(inputs)} and {len(targets)}")
    if size < 1:
        raise ValueError(f"batch size must be positive, got {size}")
