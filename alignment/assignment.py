"""Linear assignment: which unit goes to which place."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
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
