"""How far to go from the base, told by the angle between the models."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from npmerge.inner_products import Angles, Angular


@dataclass(frozen=True)
class ModelStock(Angular):
    """base + t (mean of params - base), t = N cos / (1 + (N - 1) cos), for each tensor (Jang et al. 2024, for N models).

    cos is the cosine of the angle between task vectors, which the paper takes as one number: for more than two models it is
    the mean over pairs, as in mergekit and FusionBench. It is 1 for equal models, which are the result, and 0 for orthogonal
    task vectors, whose result is the base. Below 0 it is taken as 0, so t stays in [0, 1] (mergekit goes beyond the base,
    without bound as cos nears -1 / (N - 1)). A task vector of zero is orthogonal to all. Single numbers are averaged.
    Needs a base.

    Attributes:
        per_channel: one t per output channel (the last axis; `filter_wise` in mergekit) rather than per tensor. A tensor of
            one axis is one vector.

    Example:
        >>> for second in ([2.0, 0.0], [1.2, 1.6], [0.0, 2.0]):  # the less the models agree the nearer to the base
        ...     stack = nm.stack_models([{"w": jnp.array([2.0, 0.0])}, {"w": jnp.array(second)}], base={"w": jnp.zeros(2)})
        ...     print(np.array(nm.ModelStock()(stack)["w"]).round(3))
        [2. 0.]
        [1.2 0.6]
        [0. 0.]
    """

    per_channel: bool = False
    needs_base = True
    models = (2, None)

    def coefficients(self, angles: Angles, shares: Float[np.ndarray, " models"]) -> Float[np.ndarray, "groups models"]:
        """The same t / N for all models."""
        n = angles.norms.shape[1]
        pairs = angles.cosines[:, *np.triu_indices(n, 1)]
        cosine = np.maximum(pairs.mean(1, keepdims=True), 0)
        return np.broadcast_to(cosine / (1 + (n - 1) * cosine), angles.norms.shape)
