"""What a merge that ends, or begins, inside a network shares: weight by weight, and inside a weight part by part."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from alignment.blocks import Bare, each_block
from alignment.graph import Graph
from alignment.labels import NodeAxis, Role, mentions, new_size, node_axes

OWN, MERGED, ENTERING = range(3)


class Cut(NamedTuple):
    """What becomes of the weights that make units of merged nodes. All others stay each model's own.

    Attributes:
        shared: paths of those that are averaged over the models.
        parted: those that make other units as well (a split, a norm over a concatenation): averaged where True, in the shape
            of the merged network, and each model's own elsewhere.
        continued: those by which a model goes on writing merged units from units of its own, behind the cut (the zero-padded
            shortcut of a residual stream), and what acts on such sums: each model's own.
        entries: those that make merged units, and no others, from units that are not: where stems end.
    """

    shared: tuple[str, ...]
    parted: Mapping[str, Bool[np.ndarray, "..."]]
    continued: tuple[str, ...]
    entries: tuple[str, ...]


def cut_of(graph: Graph, merged: Mapping[str, int], *, stems: bool) -> Cut:
    """Sort the weights of a network.

    Args:
        graph: the network.
        merged: the nodes that are merged, with their new widths.
        stems: whether weights may enter the merged part.

    Raises:
        ValueError: a weight that makes merged units from units that are not, where a head cannot go on from it either (the
            weight and the nodes are named); one that makes units of a merged node inside a node that is not.
    """
    kinds = {path: _kinds(graph, path, merged) for path in graph.axes}
    found = {path: set(np.unique(each).tolist()) for path, each in kinds.items()}
    entries = tuple(path for path, these in found.items() if ENTERING in these and OWN not in these)
    mixed = [path for path, these in found.items() if ENTERING in these and OWN in these]
    for path in [*(() if stems else entries), *(path for path in mixed if not _behind(graph, path, merged))]:
        _refuse(graph, path, merged, stems=stems)
    sums = {label for path in mixed for label in graph.axes[path] if any(mentions(label, name) for name in merged)}
    continued = {path for path, these in found.items() if OWN in these and sums.intersection(graph.axes[path])}
    parted = {path: kinds[path] == MERGED for path, these in found.items() if these == {OWN, MERGED} and path not in continued}
    return Cut(tuple(sorted(path for path, these in found.items() if these == {MERGED})), parted, tuple(continued), entries)


def _kinds(graph: Graph, path: str, merged: Mapping[str, int]) -> Int[np.ndarray, "..."]:
    """For each number of a weight, in its new shape: OWN, MERGED (merged units from such) or ENTERING (from others)."""

    def kind(labels: Sequence[Bare], x: np.ndarray) -> np.ndarray:
        made, read = ({a.node for a in labels if isinstance(a, NodeAxis) and a.role == role} for role in ("out", "in"))
        inside, outside = made.intersection(merged), made.difference(merged)
        if inside and outside:
            raise ValueError(
                f"{path!r} makes units of {min(inside)!r}, which is merged, along with {min(outside)!r}, which is not: "
                "give maps of both or of neither"
            )
        value = OWN if not inside else ENTERING if read.difference(merged) else MERGED
        return np.full([new_size(label, merged) for label in labels], value, np.int8)

    return each_block(graph.axes[path], np.zeros(graph.shapes[path], np.int8), kind)


def _nodes(graph: Graph, path: str, role: Role) -> set[str]:
    return {axis.node for label in graph.axes[path] for axis in node_axes(label) if axis.role == role}


def _behind(graph: Graph, path: str, merged: Mapping[str, int]) -> bool:
    """Whether the merged units that a weight makes are there before the units, each model's own, that it makes them from."""
    order = list(graph.nodes)
    made, read = _nodes(graph, path, "out").intersection(merged), _nodes(graph, path, "in").difference(merged)
    return max(map(order.index, made)) < min(map(order.index, read))


def _refuse(graph: Graph, path: str, merged: Mapping[str, int], *, stems: bool) -> None:
    """Raise ValueError for a weight that would have to be averaged and stay separate at once."""
    made, read = _nodes(graph, path, "out").intersection(merged), _nodes(graph, path, "in").difference(merged)
    others = "" if stems else ", or let layers in front stay separate with stems=True"
    if outside := _nodes(graph, path, "out").difference(merged):
        others = f" (it makes units of {min(outside)!r}, which is not merged, as well)"
    raise ValueError(
        f"{path!r} makes units of {min(made)!r}, which is merged, from {min(read)!r}, which is not: cut elsewhere{others}"
    )
