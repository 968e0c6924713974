"""What a kernel sees of the tensors that it merges: flat blocks of a fixed number of entries.

Blocks do not depend on memory, threads or how the inputs are cut into files, so neither does a result that is reduced over
them in their order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from npmerge.recipe.plan import Step

BLOCK = 2**20
"""Entries of a block; the last of a tensor has fewer."""

T = TypeVar("T")


class Block(NamedTuple):
    """A run of entries of one tensor, of all models.

    Attributes:
        models: one flat array per source, of its stored dtype.
        base: that of the base, if any.
        start: flat position of the first entry in the tensor.
    """

    models: tuple[np.ndarray, ...]
    base: np.ndarray | None
    start: int


class Tensor(Protocol):
    """One tensor of all models, read when it is asked for."""

    step: Step
    size: int

    def each(self, function: Callable[[Block], T]) -> list[T]:
        """`function` of every block, on several threads; the results in the order of the blocks."""

    def whole(self) -> Block:
        """All entries at once, for methods that cannot work in blocks."""


class Merged(NamedTuple):
    """The merged entries of a block, and what is to be told of them.

    Attributes:
        values: flat, of the dtype of the step: merged in float32 (float64 if a source is) and rounded once.
        nonfinite: how many of them are NaN or infinite.
        rounding: the largest |values - what was rounded| among those that are finite; 0 if there are none.
    """

    values: np.ndarray
    nonfinite: int
    rounding: float


class Kernel(Protocol):
    """A merge method as the engine runs it, tensor by tensor. Both methods may be called by several threads at once."""

    in_blocks: bool
    """Whether `merge` may be called with one block at a time; else with `Tensor.whole()`."""

    def survey(self, tensor: Tensor) -> Any:
        """What has to be known of the whole tensor before a block can be merged, such as thresholds.

        It may read the tensor several times: a tensor whose blocks fit into memory is best read once.
        """

    def merge(self, block: Block, surveyed: Any, step: Step) -> Merged:
        """The merged entries, rounded to the dtype of the step."""


KernelOf = Callable[[Step], Kernel]
"""The arithmetic of one step."""
