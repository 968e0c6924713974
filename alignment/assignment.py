"""Linear assignment: which unit goes to which place."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from scipy.optimize import linear_sum_assignment


def assign(scores: Float[np.ndarray, "places units"]) -> Int[np.ndarray, " places"]:
    """The permutation that maximises the total score: `index[i]` is the unit put at place i.

    Solved exactly on the host in float64 (Jonker-Volgenant, scipy). Ties are broken the same way on every call.

    Raises:
        ValueError: if a score is NaN or infinite.
    """
    scores = np.asarray(scores, np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(f"assignment scores of shape {scores.shape} hold non-finite values")
    return linear_sum_assignment(scores, maximize=True)[1]


def assign_in_jit(scores: Float[Array, "*copies places units"], *, device: bool = False) -> Int[Array, "*copies places"]:
    """What `assign` finds for each copy, from inside a traced function. It has no derivative.

    Args:
        scores: how well each unit fits each place.
        device: whether the Hungarian algorithm of optax runs where the scores are, in float32 and without a check;
            otherwise the scores go to the host and back, which is faster on a CPU.

    Raises:
        ValueError: if a score is NaN or infinite (on the host only, as the error of the running computation).
    """
    scores = jax.lax.stop_gradient(scores)
    if device:
        return jnp.vectorize(_hungarian, signature="(p,u)->(p)")(scores)
    found = jax.ShapeDtypeStruct(scores.shape[:-1], jnp.int32)
    return jax.pure_callback(assign_copies, found, scores, vmap_method="expand_dims")


def _hungarian(scores: Float[Array, "places units"]) -> Int[Array, " places"]:
    places, units = optax.assignment.hungarian_algorithm(-scores.astype(float))  # in no order that it promises
    return jnp.zeros(len(scores), jnp.int32).at[places].set(units.astype(jnp.int32))


def assign_copies(scores: Float[np.ndarray, "*copies places units"]) -> Int[np.ndarray, "*copies places"]:
    """`assign` for each copy."""
    scores = np.asarray(scores)
    if scores.ndim == 2:
        return assign(scores).astype(np.int32)
    solved = [assign(s) for s in scores.reshape(-1, *scores.shape[-2:])]
    return np.asarray(solved, np.int32).reshape(scores.shape[:-1])


def assign_two_level(
    direct: Float[np.ndarray, "places groups"], inner: Sequence[Float[np.ndarray, "places groups units units"]]
) -> tuple[Int[np.ndarray, " places"], list[Int[np.ndarray, "groups units"]]]:
    """Groups to places, given that the units inside a group may be permuted as well (heads and what is inside them).

    A group is worth at a place what the best assignments of its units are worth there.

    Args:
        direct: scores of the groups themselves.
        inner: for each kind of units inside them, the scores of their units at each place.

    Returns:
        The group put at each place, and for each kind the units' order in each group, at its old place.
    """
    within = [np.empty(s.shape[:3], int) for s in inner]
    total = np.array(direct, np.float64)
    for scores, found in zip(inner, within, strict=True):
        for p, g in np.ndindex(total.shape):
            found[p, g] = assign(scores[p, g])
            total[p, g] += np.take_along_axis(scores[p, g], found[p, g][:, None], 1).sum()
    index = assign(total)
    place = np.argsort(index)  # of each group
    return index, [found[place, np.arange(len(index))] for found in within]
