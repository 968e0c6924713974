"""Which nodes can keep units of several networks side by side, which can be joined and split, and why the others cannot."""

from collections.abc import Mapping, Set
from typing import NamedTuple

from alignment.checks import unknown
from alignment.graph import Graph, Node
from alignment.labels import node_axes
from alignment.sites import Site

MOVES_NOTHING = {"convert_element_type", "copy", "stop_gradient"}


def held(graph: Graph) -> dict[str, str]:
    """The nodes that must keep their width when units of several networks stand side by side: name -> why.

    - Those inside others (head_dim): a product of queries and keys sums over them, so the units of two networks would make one
      head of twice the logits. Whole heads can stand side by side, with all that is inside them.
    - Those with rotations among their symmetries (a stream between RMSNorms without scales, queries and keys, the rank of a
      product): what is alike in two networks is a direction, not a unit. A layer that is just linear can be separated.
    - Those that one tensor both writes and reads (an embedding that is the output layer too): units that are written in full
      would be read in full, and the logits of several networks add up instead of being averaged.
    - Those over which products of features sum without heads (queries and keys whose norm all heads share), or that no weight
      reads at all.

    Inputs, outputs and all that is tied to them are no nodes: `graph.pinned` says why.
    """
    use = _use(graph)
    reasons = {name: _reason(graph, node, use) for name, node in graph.nodes.items()}
    return {name: why for name, why in reasons.items() if why}


def rigid(graph: Graph) -> dict[str, str]:
    """The nodes whose units are only permuted, wherever units are zipped, joined or split by others: name -> why.

    Heads and what is inside them, which are matched whole, and those that `held` lists for what reads them: a tensor that both
    writes and reads them, products of features, no weight at all. What reads a unit there reads it as it is written, so its
    copies would add up. Rotations are no reason here: units can be joined where they could be turned.
    """
    use = _use(graph)
    reasons = {name: _family(graph, node, use) or _met(node, use) for name, node in graph.nodes.items()}
    return {name: why for name, why in reasons.items() if why}


def separable(graph: Graph) -> tuple[str, ...]:
    """The nodes that can change their width, in the order of the network."""
    fixed = held(graph)
    return tuple(name for name in graph.nodes if name not in fixed)


def check_separable(graph: Graph, ratios: Mapping[str, float]) -> None:
    """Raise ValueError for a node that cannot be separated to a ratio above 0, or is none: the nearest and all that can be."""
    fixed = held(graph)
    for name, ratio in ratios.items():
        can = f"those that can change width are {', '.join(separable(graph)) or 'none'}"
        if name not in graph.nodes:
            raise ValueError(f"{unknown('node', name, graph.nodes)} (inputs, outputs and what is tied to them are none); {can}")
        if name in fixed and ratio > 0:
            raise ValueError(f"node {name!r} must stay merged, got ratio {ratio}: {fixed[name]}; {can}")


class _Use(NamedTuple):
    """What weights do with nodes."""

    indexing: Set[str]  # those that others are inside of
    doubled: Mapping[str, str]  # those that a tensor reads by the axis by which it writes them, with the tensor
    taken: Set[str]  # those with an axis that consumes them
    unread: Set[str]  # those with one that is not known to meet features
    made: Set[str]  # those with one that is known to make features: the others it is multiplied with are features too


def _use(graph: Graph) -> _Use:
    rows = [(site.path, _rows(site, len(graph.axes[site.path]))) for site in graph.sites]
    read = {(path, d) for path, found in rows for d in found or ()}
    known = {path for path, found in rows if found is not None}
    axes = [
        (path, d, axis) for path, labels in graph.axes.items() for d, label in enumerate(labels) for axis in node_axes(label)
    ]
    consuming = [(path, d, axis.node) for path, d, axis in axes if axis.role == "in"]
    return _Use(
        indexing={name for node in graph.nodes.values() for name in node.index},
        doubled={axis.node: path for path, d, axis in axes if axis.role == "out" and (path, d) in read},
        taken={name for _, _, name in consuming},
        unread={name for path, d, name in consuming if (path, d) not in read},
        made={name for path, d, name in consuming if (path, d) not in read and path in known},
    )


def _reason(graph: Graph, node: Node, use: _Use) -> str:
    if inside := _inside(graph, node):
        return inside
    if node.name not in use.doubled and (node.group == "orthogonal" or (node.group == "linear" and node.name in use.unread)):
        return f"its group is {node.group}"
    return _met(node, use)


def _family(graph: Graph, node: Node, use: _Use) -> str:
    return _inside(graph, node) or ("others are inside it" if node.name in use.indexing else "")


def _inside(graph: Graph, node: Node) -> str:
    inside = [name for name in node.index if name in graph.nodes]
    return f"it is inside {inside[-1]!r}" if inside else ""


def _met(node: Node, use: _Use) -> str:
    """Why what reads a node reads it as it is written."""
    if node.name in use.doubled:
        return f"{use.doubled[node.name]!r} both writes and reads it"
    if node.name in use.indexing:
        return ""
    if node.name not in use.taken:
        return "no weight reads it"
    return "products of features sum over it" if node.name in use.made else ""


def _rows(site: Site, ndim: int) -> list[int] | None:
    """The axes of the leaf that a site contracts; None where the leaf was reshaped on the way."""
    axes = list(range(ndim))
    for primitive, *rest in site.source.steps:
        if isinstance(primitive, str):  # one step of a loop
            axes = axes[1:]
        elif primitive.name == "transpose":
            axes = [axes[d] for d in rest[0]["permutation"]]
        elif primitive.name not in MOVES_NOTHING:
            return None
    if site.primitive == "conv_general_dilated":
        return [axes[site.params["dimension_numbers"].rhs_spec[1]]]
    contracted, _ = site.params["dimension_numbers"]
    return [axes[d] for d in contracted[site.weight]]
