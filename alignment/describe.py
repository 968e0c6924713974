"""A graph as people read it: a table, and the edges between nodes for drawing."""

import itertools
from typing import TYPE_CHECKING, NamedTuple

from alignment.labels import AxisLabel, Cases, Fixed, NodeAxis, Product, Segments, mentions, node_axes

if TYPE_CHECKING:
    from alignment.graph import Graph

INPUTS, OUTPUTS = "inputs", "outputs"


class Edge(NamedTuple):
    """A tensor that consumes one node and produces another; `inputs` and `outputs` stand for what is not a node."""

    source: str
    target: str
    path: str


def table(graph: "Graph") -> str:
    """One line for each axis that carries a node, and why the other axes are held."""
    if not graph.nodes:
        axes = len({(pin.path, pin.axis) for pin in graph.pinned})
        why = f"no node can move ({axes} axes are held fixed): is it in evaluation mode, and are its weights the variables?"
        return "\n".join([why, *held(graph)])
    rows = [("node", "size", "group", "tensors")]
    for name in _outer_first(graph):
        node = graph.nodes[name]
        tensors = [
            f"{path}[{axis}] {_describe(graph.axes[path][axis], name)}"
            for path, axes in graph.touching(name).items()
            for axis in axes
        ]
        first = [name, *(f"  in each of {index}" for index in node.index)]
        size = " x ".join(map(str, (*node.copies, node.size)))
        cells = itertools.zip_longest(first, [size], [node.group], tensors, fillvalue="")
        rows += list(cells)
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, "", *held(graph)])


def _outer_first(graph: "Graph") -> dict[str, None]:
    """The names of the nodes, each after those that it is indexed by."""
    found: dict[str, None] = {}

    def add(name: str) -> None:
        for outer in graph.nodes[name].index:
            if outer in graph.nodes:
                add(outer)
        found[name] = None

    for name in graph.nodes:
        add(name)
    return found


def held(graph: "Graph") -> list[str]:
    """The reasons for which axes are held fixed, how many each, and the first line of source behind it."""
    reasons: dict[str, list[str]] = {}
    for pin in graph.pinned:
        reasons.setdefault(pin.reason, []).append(pin.source)
    if not reasons:
        return ["no axis is held fixed"]
    lines = [f"  {len(at)} x {reason}" + (f", first at {at[0]}" if at[0] else "") for reason, at in reasons.items()]
    return ["axes held fixed (graph.pinned):", *lines]


def edges(graph: "Graph") -> list[Edge]:
    """Every tensor as edges from the nodes it consumes to those it produces; vectors have none."""
    found = []
    reads = {(pin.path, pin.reason) for pin in graph.pinned}
    indices = {index for node in graph.nodes.values() for index in node.index}  # what they index stands for them
    for path, labels in graph.axes.items():
        if len(labels) < 2:
            continue
        roles = dict.fromkeys((axis.node, axis.role) for label in labels for axis in node_axes(label))
        sources, targets = ([node for node, r in roles if r == role and node not in indices] for role in ("in", "out"))
        if not sources and any((path, reason) in reads for reason in ("input", "looked up by index")):
            sources = [INPUTS]
        if not targets and (path, "output") in reads:
            targets = [OUTPUTS]
        found += [Edge(a, b, path) for a in sources for b in targets]
    return found


def dot(graph: "Graph") -> str:
    """The graph in the language of Graphviz: nodes, tensors as edges, dashed edges from an index to what it indexes."""
    lines = ["digraph {", "  rankdir=LR;", '  node [shape=box, style=rounded, fontname="sans-serif"];']
    for node in graph.nodes.values():
        label = f"{node.name}\\n{' x '.join(map(str, (*node.copies, node.size)))} {node.group}"
        lines.append(f"  {_quoted(node.name)} [label={_quoted(label)}];")
        within = [index for index in node.index if index in graph.nodes]
        lines += [f"  {_quoted(index)} -> {_quoted(node.name)} [style=dashed, arrowhead=none];" for index in within]
    lines += [f"  {_quoted(e.source)} -> {_quoted(e.target)} [label={_quoted(e.path)}];" for e in edges(graph)]
    return "\n".join([*lines, "}", ""])


def _describe(label: AxisLabel, node: str) -> str:
    """How a node stands on an axis: its role, the part of the axis it fills, what it is multiplied with."""
    match label:
        case NodeAxis():
            return label.role if label.node == node else str(label)
        case Product(factors):
            return " x ".join(_describe(f, node) if mentions(f, node) else str(f) for f in factors)
        case Segments(parts):
            mine = [p for p in parts if mentions(p.label, node)]
            return ", ".join(f"{a}:{b} {_describe(p.label, node)}" for p in mine for a, b in p.intervals)
        case Cases(_, options):
            return " or ".join(_describe(option, node) for option in options if mentions(option, node))
        case Fixed():
            return str(label)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'
