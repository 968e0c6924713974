"""The permutations that another alignment starts from."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array

from alignment.base import Alignment, PermutationAlignment, Stats
from alignment.graph import Graph, PyTree
from alignment.maps import NodeMap, is_permutation
from alignment.permutations import Order, unmoved


def orders_of(
    start: Alignment | None, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None, key: Array | None
) -> list[dict[str, Order]]:
    """For each model the order of every node that an alignment finds; None leaves all as they are.

    Raises:
        ValueError: if the alignment's maps are not permutations (the node is named).
    """
    still = [unmoved(graph) for _ in models]
    if start is None or len(models) == 1:
        return still
    theta = start.rounded(start.init(graph, models, stats=stats, key=key))
    if isinstance(start, PermutationAlignment):
        found = [{name: np.asarray(order) for name, order in model.items()} for model in theta]
    else:
        maps = start.maps(theta, graph)[1:]
        found = [{}, *({name: _order(start, name, m) for name, m in model.items()} for model in maps)]
    return [own | orders for own, orders in zip(still, found, strict=True)]


def _order(start: Alignment, name: str, m: NodeMap) -> Order:
    if not is_permutation(m):
        raise ValueError(f"start must be an alignment by permutations, but {type(start).__name__} maps {name!r} otherwise")
    return np.asarray(m.push).argmax(-1)
