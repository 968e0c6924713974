"""The uniform average."""

from dataclasses import dataclass

from jaxtyping import Array

from alignment.graph import PyTree
from npmerge.base import Stats
from npmerge.linear import LinearMerge, constant
from npmerge.stack import Stack


@dataclass(frozen=True)
class Average(LinearMerge):
    """sum_m params_m / N: the uniform soup (Wortsman et al. 2022).

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([1.0, 4.0])}, {"w": jnp.array([3.0, 0.0])}])
        >>> print(nm.Average()(stack)["w"])
        [2. 2.]
    """

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """1 / N everywhere."""
        return constant(stack, 1 / stack.size)
