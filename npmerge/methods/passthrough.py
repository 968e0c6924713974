"""One model as it is."""

from dataclasses import dataclass

from jaxtyping import Array

from alignment.checks import check_finite_number
from alignment.graph import PyTree
from npmerge.base import Stats
from npmerge.linear import LinearMerge, constant
from npmerge.stack import Stack


@dataclass(frozen=True)
class Passthrough(LinearMerge):
    """scale * params of the one model of the stack (`passthrough` in mergekit, there for stacking layers).

    Running statistics are not scaled: they are no weights.

    Attributes:
        scale: a factor, 1 by default.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([1.0, 3.0])}])
        >>> print(nm.Passthrough(0.5)(stack)["w"])
        [0.5 1.5]
    """

    scale: float = 1.0
    models = (1, 1)

    def __post_init__(self) -> None:
        check_finite_number("scale", self.scale)

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """The scale everywhere. Raises ValueError unless there is one model."""
        self.require_models(stack)
        return constant(stack, self.scale)
