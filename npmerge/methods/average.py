"""The uniform average."""

from dataclasses import dataclass

from jaxtyping import Array

from alignment.graph import PyTree
from npmerge.base import LinearMerge, Stats, constant
from npmerge.stack import Stack


@dataclass(frozen=True)
class Average(LinearMerge):
    """sum_m params_m / N: the uniform soup (Wortsman et al. 2022)."""

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """1 / N everywhere."""
        return constant(stack, 1 / stack.size)
