"""Task arithmetic."""

from dataclasses import dataclass

from jaxtyping import Array

from alignment.checks import check_finite_number
from alignment.graph import PyTree
from npmerge.base import LinearMerge, Stats, constant
from npmerge.hyper import searched, spaced
from npmerge.stack import Stack


@dataclass(frozen=True)
class TaskArithmetic(LinearMerge):
    """base + scale * sum_m (params_m - base) (Ilharco et al. 2023, section 2). Needs a base.

    Attributes:
        scale: lambda, published default 0.3 for eight tasks; 1/N is the average, a negative
            value forgets a task.
    """

    scale: float = searched(0.3, spaced(0.0, 1.0, 0.05))
    needs_base = True

    def __post_init__(self) -> None:
        check_finite_number("scale", self.scale)

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """Lambda everywhere."""
        self.require_base(stack)
        return constant(stack, self.scale)
