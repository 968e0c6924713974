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
    """`loss(theta, stack, batch)`: how far the aligned weights are from the reference's. Needs no data: `batches=[()]`.

    Attributes:
        alignment: whose theta is learned, such as `alignment.StraightThrough()`.
        graph: of the networks.

    Raises:
        ValueError: arguments of other kinds.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> a = {"w": jnp.array([[1.0, 0.0], [0.0, 2.0]]), "u": jnp.eye(2)}
        >>> b = {"w": a["w"][:, ::-1], "u": a["u"][::-1]}  # its units in another order
        >>> way, graph = alignment.WeightMatching(), nm.trace(apply, a, jnp.eye(2))
        >>> print(nm.WeightDistance(way, graph)(way.init(graph, [a, b]), nm.stack_models([a, b]), ()))
        0.0
    """

    alignment: Alignment
    graph: Graph

    reads_batches = False

    def __post_init__(self) -> None:
        check_kinds("WeightDistance takes (alignment, graph)", (self.alignment, Alignment), (self.graph, Graph))

    def __call__(self, theta: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """Mean squared distance of the weights."""
        return weight_distance(self.alignment, self.graph, theta, check_stack(stack).models())
