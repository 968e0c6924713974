"""Figures of graphs and of alignments."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment import Graph
from alignment.checks import kind_of
from alignment.describe import INPUTS, OUTPUTS, edges
from npmerge.paths import Barrier, Path
from npmerge.reports.charts import literal
from npmerge.reports.drawing import new_figure

Paths = Path | Barrier | Sequence[Path | Barrier]
COLOURS = {"permutation": "tab:blue", "scale": "tab:orange", "orthogonal": "tab:green", "linear": "tab:red"}


def graph_figure(graph: Graph) -> Any:
    """A graph as an arc diagram: nodes from top to bottom in the order of the network, tensors as arcs between them.

    A solid arc leads down to a node that is computed later, a dotted one back up (into a residual stream); wider arcs stand for
    several tensors. Colours are groups. Save it with `.savefig("graph.png")`.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> graph = nm.trace(apply, {"w": jnp.ones((4, 3)), "u": jnp.ones((3, 2))}, jnp.ones((1, 4)))
        >>> figure = nm.graph_figure(graph)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['inputs', 'w  3', 'outputs']
    """
    from matplotlib.figure import Figure  # slow to import, and needed nowhere else

    rows = {name: row for row, name in enumerate([INPUTS, *graph.nodes, OUTPUTS])}
    drawing = Figure(figsize=(9, 1 + 0.32 * len(rows)), layout="constrained")
    axes = drawing.subplots()
    for (source, target), count in Counter((e.source, e.target) for e in edges(graph)).items():
        _arc(axes, rows[source], rows[target], count)
    for name, row in rows.items():
        node = graph.nodes.get(name)
        colour = COLOURS[node.group] if node else "black"
        axes.plot(0, row, "o" if node else "s", color=colour, markersize=7, zorder=3)
        text = name
        if node:
            times = "".join(f"{copies} x " for copies in node.copies)
            text = f"{'    ' * len(node.index)}{name}  {times}{node.size}"
        axes.text(-0.15, row, text, ha="right", va="center", fontsize=7, color=colour)
    longest = max((abs(rows[e.source] - rows[e.target]) for e in edges(graph)), default=1)
    for group in dict.fromkeys(node.group for node in graph.nodes.values()):
        axes.plot([], [], "o", color=COLOURS[group], label=group)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-0.2, 0.5 + 0.6 * longest))
    axes.axis("off")
    if graph.nodes:
        axes.legend(frameon=False, fontsize="small", loc="upper right", title="group")
    return drawing


def _arc(axes: Any, start: int, end: int, count: int) -> None:
    """Half an ellipse to the right of the column of nodes."""
    from matplotlib.patches import Arc

    middle, height, down = (start + end) / 2, abs(end - start) or 0.6, end > start
    style: dict[str, Any] = {"linestyle": "-" if down else ":", "color": "0.3" if down else "0.5"}
    width = height if down else 1.2 * height  # beside the arc that leads down between the same nodes
    axes.add_patch(Arc((0, middle), width, height, theta1=-90, theta2=90, linewidth=0.6 + 0.3 * count, **style))


def correlation_figure(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], names: Sequence[str]) -> Any:
    """Matched correlation by depth, a colour for each network, dashed before alignment.

    Args:
        before: node -> the matched correlation (networks,) of each network but the reference, from the inputs to the outputs.
        after: the same of the aligned networks.
        names: of the networks.

    Example:
        >>> before = {"first layer": np.array([0.1]), "second layer": np.array([0.0])}
        >>> after = {"first layer": np.array([0.9]), "second layer": np.array([0.7])}
        >>> (axes,) = nm.correlation_figure(before, after, ["b"]).axes
        >>> [(line.get_label(), [float(y) for y in line.get_ydata()]) for line in axes.lines[:2]]
        [('b, before', [0.1, 0.0]), ('b', [0.9, 0.7])]
    """
    drawing, axes = _single(width=6.5 + 0.12 * len(before))
    for values, style in ((before, "--"), (after, "-")):
        for k, name in enumerate(names):
            label = literal(name if values is after else f"{name}, before")
            axes.plot([float(v[k]) for v in values.values()], style, marker=".", color=f"C{k}", label=label)
    axes.set_xticks(range(len(before)), labels=list(before), rotation=90, fontsize=6 if len(before) > 20 else 8)
    axes.set(ylabel="mean correlation of matched units", title="Matched correlation by depth")
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.legend(frameon=False, fontsize="small")
    return drawing


def barrier_figure(before: Paths, after: Paths, names: Sequence[str] | str, *, label: str = "loss") -> Any:
    """Loss on the straight line from the reference to each network, dashed before alignment.

    Args:
        before: what `barrier` or `path_between` found to each network; of one network it may stand without a list.
        after: the same to each aligned network.
        names: of the networks.
        label: what the loss is, and its unit if it has one: "loss (nats)" of cross entropy.

    Raises:
        ValueError: anything else, or not one before and one after for each name.

    Example:
        >>> apply, batches = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"], [(jnp.eye(2), np.array([0, 1]))]
        >>> a = {"w": jnp.eye(2), "u": 4 * jnp.eye(2)}
        >>> b = {"w": a["w"][:, ::-1], "u": a["u"][::-1]}  # its units in another order; aligned it is a
        >>> before, after = (nm.barrier(apply, a, other, batches, points=3) for other in (b, a))
        >>> (axes,) = nm.barrier_figure(before, after, "b", label="loss (nats)").axes
        >>> [line.get_label() for line in axes.lines]  # how far the loss rises above the line between both ends
        ['b, before (barrier 0.675)', 'b, after (barrier 0)']
    """
    names = [names] if isinstance(names, str) else names
    drawing, axes = _single(width=6.5)
    for when, given, style in (("before", before, "--"), ("after", after, "-")):
        for k, (name, path) in enumerate(zip(names, _paths(when, given, len(names)), strict=True)):
            told = literal(f"{name}, {when} (barrier {path.barrier:.3g})")
            axes.plot(path.fractions, path.loss, style, marker=".", color=f"C{k}", label=told)
    axes.set(xlabel="fraction of the way from the reference", ylabel=label, title="Along the path")
    drawing.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")  # beside the curves, not over them
    return drawing


def _paths(when: str, given: Any, networks: int) -> list[Path]:
    """The paths of as many networks. Raises ValueError for anything else."""
    several = isinstance(given, Sequence) and not isinstance(given, Path | Barrier)
    found = [x.path if isinstance(x, Barrier) else x for x in (given if several else [given])]
    others = [x for x in found if not isinstance(x, Path)]
    if others:
        raise ValueError(f"barrier_figure takes what barrier or path_between returns as {when}, got {kind_of(others[0])}")
    if len(found) != networks:
        raise ValueError(f"barrier_figure takes a path to each network: got {len(found)} {when}, and {networks} names")
    return found


def _single(width: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, 4.6), layout="constrained")
    return drawing, drawing.subplots()


def size_figure(points: Sequence[Mapping[str, float]], levels: Mapping[str, Mapping[str, float]], chosen: float) -> Any:
    """Accuracy and loss of merged networks against their size, with levels for comparison as dotted lines.

    Args:
        points: for each size its `budget`, `cost` (operations, as a multiple of one network), `accuracy` and `loss`.
        levels: accuracy and loss of what the merged networks are compared with, by name.
        chosen: the budget of the network that was kept.
    """
    drawing, both = new_figure(2)
    for axes, name in zip(both, ("accuracy", "loss"), strict=True):
        axes.plot([p["cost"] for p in points], [p[name] for p in points], marker="o", label="merged")
        kept = [p for p in points if p["budget"] == chosen]
        axes.plot([p["cost"] for p in kept], [p[name] for p in kept], "*", markersize=14, color="tab:red", label="kept")
        for k, (label, level) in enumerate(levels.items()):
            axes.axhline(level[name], color="grey", linestyle=(":", "--", "-.")[k % 3], label=label)
        axes.set(xlabel="operations, as a multiple of one network", ylabel=name)
    both[0].legend(frameon=False, fontsize="small")
    return drawing
