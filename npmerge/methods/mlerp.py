"""The average at the models' length."""

from dataclasses import dataclass

from jaxtyping import Array

from alignment.graph import PyTree
from npmerge.base import LinearMerge, Stats
from npmerge.inner_products import from_angles, on_sphere
from npmerge.stack import Stack
from npmerge.weights import Weights, check_weights, shares_of


@dataclass(frozen=True)
class Mlerp(LinearMerge):
    """The weighted average of each tensor, rescaled to the weighted mean of the models' norms.

    MLERP (Kim et al. 2024, Token Fusion) merges tokens and takes the largest norm. For models it is named in Tam et al. 2024,
    Realistic Evaluation of Model Merging, with the mean norm, which is taken here: the largest is that of one model alone.
    Unlike in `MultiSlerp` longer tensors weigh more. A single number is averaged.

    Attributes:
        weights: one number per model, divided by their sum; equal by default.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}])
        >>> print(np.array(nm.Mlerp()(stack)["w"]).round(3))  # the average [1.5 0.5], brought to the mean length 2
        [1.897 0.632]
    """

    weights: Weights = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", check_weights(self, self.weights))

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """One coefficient per model and tensor. Raises ValueError for tensors that cancel out, and for weights that do."""
        shares = shares_of(self, self.weights, stack)
        return from_angles(lambda angles: on_sphere(self, angles, shares, shares * angles.norms), stack, shares)
