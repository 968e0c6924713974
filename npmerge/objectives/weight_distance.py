"""The loss of an alignment that needs no data: how far apart the aligned weights are."""

from dataclasses import dataclass

from jaxtyping import Array, Float

from alignment.base import Alignment
from alignment.checks import check_kinds
from alignment.graph import Graph, PyTree
from alignment.weight_distance import weight_distance
from npmerge.stack import Stack, check_stack


@dataclass(frozen=True)
class WeightDistance:
    """`loss(theta, stack, batch)`: how far the aligned weights are from the reference's. Needs no data: `batches=[()]`."""

    alignment: Alignment
    graph: Graph

    reads_batches = False

    def __post_init__(self) -> None:
        check_kinds("WeightDistance takes (alignment, graph)", (self.alignment, Alignment), (self.graph, Graph))

    def __call__(self, theta: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """Mean squared distance of the weights."""
        return weight_distance(self.alignment, self.graph, theta, check_stack(stack).models())
