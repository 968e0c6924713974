"""Charts of reports. Each takes plain numbers, and returns a figure of matplotlib."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from npmerge.reports.intervals import Interval

MOST_NUMBERS = 240
"""Cells of a map up to which each shows its number."""

MOST_HEADS = 8
"""Columns of a map up to which their names are written from left to right."""

MARKERS = "os^Dvp*X"

MANY = 100
"""Coefficients in one bin from which on their numbers are drawn on a logarithmic scale."""


def depth_map(values: Float[np.ndarray, "depth columns"], rows: Sequence[str], columns: Sequence[str], label: str) -> Any:
    """A heat map, from the inputs of the network at the top to its outputs. Cells that are NaN stay empty.

    Args:
        values: of each row and column.
        rows: names of layers or modules.
        columns: names of models, or of pairs of them.
        label: what the values are.
    """
    from matplotlib.figure import Figure  # slow to import, and needed nowhere else

    shown, heads = values.size <= MOST_NUMBERS, [wrapped(x, 22) for x in columns]
    longest, lines = max(len(line) for x in heads for line in x.split("\n")), max(x.count("\n") + 1 for x in heads)
    upright = len(columns) > MOST_HEADS
    column = max(0.55 if shown else 0.4, 0.2 * lines) if upright else max(0.9 if shown else 0.5, 0.085 * longest)
    row = 0.26 if len(rows) <= 40 else 0.17
    width = max(5.0, 0.8 + 0.08 * max(map(len, rows)) + column * len(columns))
    height = 1.2 + (0.085 * longest if upright else 0.18 * lines) + row * len(rows)
    drawing = Figure(figsize=(width, height), layout="constrained")
    axes = drawing.subplots()
    low, high = _limits(values)
    mesh = axes.pcolormesh(values, cmap=sequential(), vmin=low, vmax=high, edgecolors="none", linewidth=0)
    axes.set_yticks(np.arange(len(rows)) + 0.5, labels=_plain(rows), fontsize=9 if len(rows) <= 40 else 7)
    turned: dict[str, Any] = {"rotation": 90, "ha": "left", "va": "center", "rotation_mode": "anchor"} if upright else {}
    axes.set_xticks(np.arange(len(columns)) + 0.5, labels=_plain(heads), **turned)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    if shown:
        _numbers(axes, values, low, high)
    bar = drawing.colorbar(mesh, ax=axes, location="bottom", shrink=0.8, aspect=40, pad=0.02)
    bar.set_label(label)
    bar.ax.locator_params(nbins=5)
    bar.outline.set_visible(False)
    return drawing


def _limits(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _numbers(axes: Any, values: np.ndarray, low: float, high: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = (value - low) / (high - low) > 0.55
            text = f"{value:.3g}" if abs(value) >= 0.01 or value == 0 else f"{value:.0e}"
            axes.text(
                column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color="#ffffff" if dark else "#0b2036"
            )


def sequential() -> Any:
    """The colours of heat maps, from few to much."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("npmerge", ["#eaf2fc", "#b3d0f3", "#6fa8e8", "#2a78d6", "#17508f", "#0b2f5c"])


def by_depth(lines: Mapping[str, Sequence[float]], names: Sequence[str], label: str, level: float | None = None) -> Any:
    """A line for each model over the depth of the network.

    Args:
        lines: by label, a value for each name.
        names: of layers or modules, from the inputs to the outputs.
        label: what the values are.
        level: at which a dotted line is drawn.
    """
    labels = [wrapped(x, 50) for x in lines]
    taken = 0.075 * max(map(len, names)) + 0.2 * sum(x.count("\n") + 1 for x in labels)
    drawing, axes = single(max(6.5, 2.5 + 0.2 * len(names)), 3.0 + taken)
    for k, (name, values) in enumerate(zip(labels, lines.values(), strict=True)):
        axes.plot(range(len(values)), values, marker=MARKERS[k % len(MARKERS)], label=literal(name))
    if level is not None:
        axes.axhline(level, color="grey", linestyle=":", linewidth=1)
    depth_ticks(axes, names)
    axes.set(ylabel=label)
    legend(axes)
    return drawing


def single(width: float = 6.5, height: float = 4.2) -> tuple[Any, Any]:
    """A figure with one pair of axes, without a display."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    return drawing, drawing.subplots()


def depth_ticks(axes: Any, names: Sequence[str]) -> None:
    """Names of layers below an axis, upright and whole."""
    size = 9 if len(names) <= 24 else 7
    axes.set_xticks(range(len(names)), labels=_plain(names), rotation=90, ha="right", va="center", rotation_mode="anchor")
    axes.tick_params(axis="x", labelsize=size, length=2)


def legend(axes: Any) -> None:
    """Above the axes, where it hides no line; in one column where names are long."""
    _, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels), default=0) > 30 else min(len(labels), 2)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2, frameon=False)


def ranges(rows: Mapping[str, Interval], label: str, marked: str, *, percent: bool = False) -> Any:
    """A dot with its interval for each network, names to the left; the last word is that of `marked`.

    Args:
        rows: by name, from top to bottom.
        label: what is measured.
        marked: the name that stands out.
        percent: whether fractions are shown in per cent.
    """
    scale = 100 if percent else 1
    names = [wrapped(x, 40) for x in rows]
    lines = [x.split("\n") for x in names]
    width = 4.8 + 0.08 * max(len(line) for x in lines for line in x)
    drawing, axes = single(width, 1.0 + sum(0.18 + 0.17 * len(x) for x in lines))
    for k, (name, found) in enumerate(rows.items()):
        colour = "C0" if name == marked else "C7"
        value, low, high = (scale * x for x in found)
        error = [[value - low], [high - value]] if np.isfinite(high) else None
        axes.errorbar([value], [k], xerr=error, marker="o", color=colour, capsize=3, markersize=7 if name == marked else 5)
    if marked in rows:
        axes.axvline(scale * rows[marked].value, color="C0", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), labels=_plain(names))
    axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return drawing


def losses(batch: Sequence[float], steps: Sequence[int], held_out: Sequence[float]) -> Any:
    """The objective of every step, and that on what is held out where it was judged."""
    drawing, axes = single()
    axes.plot(np.arange(1, len(batch) + 1), batch, color="C7", linewidth=0.9, label="of the batch")
    if len(held_out):
        axes.plot(steps, held_out, marker="o", color="C0", label="on what is held out")
    axes.set(xlabel="step", ylabel="objective")
    legend(axes)
    return drawing


def histogram(edges: Sequence[float], counts: Mapping[str, Sequence[float]]) -> Any:
    """How many coefficients of each model lie where, on one scale; logarithmic where there are many in one place."""
    drawing, axes = single()
    for k, (name, values) in enumerate(counts.items()):
        axes.stairs(values, edges, label=literal(wrapped(name, 50)), color=f"C{k}", linewidth=1.4)
    most = max((max(values) for values in counts.values()), default=0)
    axes.set(xlabel="coefficient", ylabel="how many", yscale="linear" if most < MANY else "log")
    legend(axes)
    return drawing


def paths(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], start: str) -> Any:
    """Loss on the way from one network to each other one.

    Args:
        lines: by the name of that one, the fractions of the way and the losses.
        start: the name of the first.
    """
    drawing, axes = single()
    for k, (name, (fractions, loss)) in enumerate(lines.items()):
        axes.plot(fractions, loss, marker=MARKERS[k % len(MARKERS)], markersize=4, label=literal(wrapped(f"to {name}", 50)))
    axes.set(xlabel=literal(wrapped(f"fraction of the way from {start}", 60)), ylabel="loss (nats)")
    legend(axes)
    return drawing


def wrapped(name: str, width: int) -> str:
    """A long name in several lines, broken where a word ends, or else anywhere."""
    return "\n".join(textwrap.wrap(name, width)) or name


def literal(name: str) -> str:
    """A name as it is: matplotlib takes `$` for mathematics, and hides what begins with an underscore from legends."""
    text = name.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def _plain(names: Sequence[str]) -> list[str]:
    return [literal(name) for name in names]
