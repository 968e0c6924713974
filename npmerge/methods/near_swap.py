"""Interpolation where two models nearly agree."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.checks import check_number
from alignment.graph import PyTree
from npmerge.base import Stats
from npmerge.linear import LinearMerge
from npmerge.stack import Stack
from npmerge.telling import tell


@dataclass(frozen=True)
class NearSwap(LinearMerge):
    """params_0 + clip(params_1 - params_0, -t, t) elementwise: towards the second model, by t at most.

    `nearswap` in mergekit (after alchemonaut's QuartetAnemoi-70B), there written as (1 - c) params_0 + c params_1 with
    c = min(1, t / |params_1 - params_0|); where the models agree c is 1. The first model is mergekit's base.

    Attributes:
        t: the largest step, above 0; 0.0001 in the model of that name.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([1.05, 3.0])}])
        >>> print(np.array(nm.NearSwap(t=0.1)(stack)["w"]).round(3))  # the second model, no more than 0.1 away
        [1.05 1.1 ]
    """

    t: float = 1e-4
    models = (2, 2)

    def __post_init__(self) -> None:
        check_number("t", self.t, positive=True)

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """Two coefficients per parameter. Raises ValueError unless there are two models."""
        self.require_models(stack)
        return jax.tree.map(self._coefficients, stack.params)

    def _coefficients(self, x: Float[Array, "2 ..."]) -> Float[Array, "2 ..."]:
        first, second = np.asarray(x, np.float64)
        tell(5 * first.size)
        c = self.t / np.maximum(np.abs(second - first), self.t)
        return jnp.asarray(np.stack([1 - c, c]), jnp.float32)
