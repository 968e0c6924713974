"""Linear assignment: which unit goes to which place."""

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
