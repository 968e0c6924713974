"""What merge methods take one number per model of: weights and densities."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from alignment.checks import check_fraction
from npmerge.base import Merge
from npmerge.stack import Stack

Weights = tuple[float, ...] | None
"""One number per model; None weighs all alike."""

Density = float | tuple[float, ...]
"""The fraction of entries that is kept: one number for all models, or one per model."""


def check_weights(merge: Merge, weights: Sequence[float] | None) -> Weights:
    """The weights as a tuple, which has a hash. `merge` is named in the message.

    Raises:
        ValueError: unless they are finite numbers, one at least.
    """
    if weights is None:
        return None
    values = _listed(weights)
    if not values or not all(isinstance(w, numbers.Real) and math.isfinite(w) for w in values):
        raise ValueError(f"{type(merge).__name__} needs one finite weight per model, such as (0.7, 0.3), got {weights!r}")
    return tuple(float(w) for w in values)


def _listed(values: Any) -> list[Any]:
    """The elements of a sequence or an array with one axis; none of anything else."""
    if isinstance(values, Sequence):
        return [x.item() if isinstance(x, np.generic) or (_is_known(x) and not x.ndim) else x for x in values]
    return np.asarray(values).tolist() if _is_known(values) and values.ndim == 1 else []


def _is_known(x: Any) -> bool:
    """Whether it is an array with values: not one that is being traced."""
    return isinstance(x, np.ndarray | jax.Array) and not isinstance(x, jax.core.Tracer)


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
    if vanishes(values):
        raise ValueError(f"{type(merge).__name__} needs weights whose sum is not zero, got {weights}")
    return values / values.sum()


def vanishes(weights: Sequence[float] | Float[np.ndarray, " models"]) -> bool:
    """Whether weights sum to zero, up to rounding."""
    return bool(abs(np.sum(weights)) <= 1e-12 * np.abs(weights).sum())


def check_density(density: float | Sequence[float]) -> Density:
    """The density; several as a tuple, which has a hash.

    Raises:
        ValueError: unless it is a number above 0 and at most 1, or a list of such numbers.
    """
    several = _listed(density)
    for value in several or (density,):
        check_fraction("density", value, positive=True)
    return tuple(map(float, several)) if several else density  # type: ignore[return-value]


def densities_of(density: Density, models: int) -> Float[np.ndarray, " models"]:
    """One density per model.

    Raises:
        ValueError: another number of densities than of models.
    """
    values = np.atleast_1d(np.asarray(density, np.float64))
    if np.ndim(density) and len(values) != models:
        raise ValueError(f"density must be one number, or one per model: got {len(values)} densities for {models} models")
    return np.broadcast_to(values, models)
