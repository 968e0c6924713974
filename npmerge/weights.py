"""The weights of the models, as merge methods take them."""

import numbers
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from npmerge.base import Merge
from npmerge.stack import Stack

Weights = tuple[float, ...] | None
"""One number per model; None weighs all alike."""


def check_weights(merge: Merge, weights: Sequence[float] | None) -> Weights:
    """The weights as a tuple, which has a hash. `merge` is named in the message.

    Raises:
        ValueError: unless they are finite numbers, one at least.
    """
    if weights is None:
        return None
    values = list(weights) if isinstance(weights, Sequence | np.ndarray) and np.ndim(weights) == 1 else []
    if not values or not all(isinstance(w, numbers.Real) and np.isfinite(w) for w in values):
        raise ValueError(f"{type(merge).__name__} needs one finite weight per model, such as (0.7, 0.3), got {weights!r}")
    return tuple(float(w) for w in values)


def weights_of(merge: Merge, weights: Weights, stack: Stack) -> Float[np.ndarray, " models"]:
    """One weight per model of the stack; 1 for each without weights. `merge` is named in the message.

    Raises:
        ValueError: another number of weights than of models.
    """
    values = np.ones(stack.size) if weights is None else np.array(weights)
    if len(values) != stack.size:
        name = type(merge).__name__
        raise ValueError(f"{name} needs one weight per model: got {len(values)} weights for {stack.size} models")
    return values


def shares_of(merge: Merge, weights: Weights, stack: Stack) -> Float[np.ndarray, " models"]:
    """`weights_of` divided by their sum, so 1 / N without weights.

    Raises:
        ValueError: also if they sum to zero.
    """
    values = weights_of(merge, weights, stack)
    if abs(values.sum()) <= 1e-12 * np.abs(values).sum():
        raise ValueError(f"{type(merge).__name__} needs weights whose sum is not zero, got {weights}")
    return values / values.sum()
