"""The weighted average."""

from dataclasses import dataclass

from jaxtyping import Array

from alignment.graph import PyTree
from npmerge.base import Stats
from npmerge.linear import LinearMerge, constant
from npmerge.stack import Stack
from npmerge.weights import Weights, check_weights, shares_of, weights_of


@dataclass(frozen=True)
class WeightedAverage(LinearMerge):
    """sum_m w_m params_m / sum_m w_m: a soup with weights of one's choice (Wortsman et al. 2022; `linear` in mergekit).

    Negative weights are allowed. Running statistics are averaged with equal weights, as every merge does.

    Attributes:
        weights: one number per model.
        normalise: divide by the sum of the weights; without, the weights are the coefficients.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([1.0, 4.0])}, {"w": jnp.array([3.0, 0.0])}])
        >>> print(nm.WeightedAverage((3, 1))(stack)["w"])  # three parts of the first, one of the second
        [1.5 3. ]
    """

    weights: Weights
    normalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", check_weights(self, () if self.weights is None else self.weights))

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """The weights everywhere. Raises ValueError unless there is one per model, and for a sum of zero to divide by."""
        return constant(stack, (shares_of if self.normalise else weights_of)(self, self.weights, stack))
