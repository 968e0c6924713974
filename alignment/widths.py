"""The widths that networks of different widths come to, and which nodes cannot change theirs."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.checks import check_count, repeated, unknown
from alignment.graph import Graph
from alignment.labels import new_size
from alignment.separability import rigid

KEPT_APART = "networks with other inputs or outputs are merged by npmerge.multi_head, with maps of the nodes between"
"""The remedy where axes differ that no map reaches."""

Width = int | tuple[tuple[str, int], ...] | None


def check_width(width: Width) -> None:
    """Raise ValueError for what is not a positive number of units, or (node, units) for some nodes."""
    if isinstance(width, tuple | list | Mapping):
        check_widths("width", width)
    elif width is not None:
        check_count("width", width)


def check_widths(field: str, widths: Any) -> None:
    """Raise ValueError for what is not a tuple of (node, units), each node once and with at least one unit."""
    if not isinstance(widths, tuple) or not all(_is_pair(pair) for pair in widths):
        raise ValueError(f"{field} must be a tuple of (node, units), got {widths!r}")
    for name, units in widths:
        check_count(f"{field} of {name!r}", units)
    if twice := repeated(name for name, _ in widths):
        raise ValueError(f"{field} names {twice!r} twice: {widths!r}")


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)


def new_widths(graphs: Sequence[Graph], width: Width) -> dict[str, int]:
    """The units of every node of the merged network.

    Args:
        graphs: that of each model, with the same nodes.
        width: the units of every node that may change, or of those that are named; others keep those of model 0.

    Raises:
        ValueError: a node that the graph does not have; nodes with other copies; other widths of a node that is only permuted
            (`separability.rigid`), in another model or wanted; an axis that no map touches and that is not equally long in all
            models.
    """
    first, fixed = graphs[0].nodes, rigid(graphs[0])
    wanted = dict(width) if isinstance(width, tuple) else {n: width for n in first if width and n not in fixed}
    if foreign := sorted(wanted.keys() - first.keys()):
        raise ValueError(unknown("node in width", foreign[0], first))
    found = {name: wanted.get(name, node.size) for name, node in first.items()}
    for name in fixed:
        _check_fixed(name, fixed[name], first[name].size, found[name], "the width asked for")
    for k, graph in enumerate(graphs):
        for name, node in graph.nodes.items():
            if (node.index, node.copies) != (first[name].index, first[name].copies):
                raise ValueError(f"node {name!r} has copies {node.copies} in model {k}, but {first[name].copies} in model 0")
            if name in fixed:
                _check_fixed(name, fixed[name], first[name].size, node.size, f"model {k}")
        _check_shapes(graphs[0], graph, found, k)
    return found


def _check_fixed(name: str, why: str, expected: int, got: int, where: str) -> None:
    if got != expected:
        raise ValueError(
            f"node {name!r} keeps its width ({why}): expected the {expected} units of model 0, got {got} in {where}"
        )


def _check_shapes(first: Graph, graph: Graph, widths: Mapping[str, int], k: int) -> None:
    for path, labels in first.axes.items():
        ours, theirs = (tuple(new_size(a, widths) for a in axes) for axes in (labels, graph.axes.get(path, ())))
        if ours != theirs:
            raise ValueError(f"{path!r} would have shape {ours} in model 0 and {theirs} in model {k}: {KEPT_APART}")
