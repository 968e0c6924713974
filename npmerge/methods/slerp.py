"""Spherical interpolation of two models."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from alignment.checks import check_fraction
from npmerge.inner_products import Angles, Angular, arc
from npmerge.stack import Stack


@dataclass(frozen=True)
class Slerp(Angular):
    """(sin((1-t) omega) p_0 + sin(t omega) p_1) / sin(omega) for each tensor, omega the angle between the two (Shoemake 1985).

    The raw tensors are combined, not their directions; tensors with |cos omega| > 0.9995, or of norm zero, are interpolated
    linearly, as every implementation does.

    Attributes:
        t: the weight of the second model, 0 to 1.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}])
        >>> print(np.array(nm.Slerp(0.5)(stack)["w"]).round(3))  # of length 1 as both models; the average is [0.5 0.5]
        [0.707 0.707]
    """

    t: float = 0.5
    models = (2, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("t", self.t)

    def shares(self, stack: Stack) -> Float[np.ndarray, " models"]:
        """1 - t and t."""
        return np.array([1 - self.t, self.t])

    def coefficients(self, angles: Angles, shares: Float[np.ndarray, " models"]) -> Float[np.ndarray, "groups models"]:
        """The arc."""
        return arc(self, angles, self.t, linear_from=0.9995)
