"""Lines that figures of what was measured share."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from npmerge.paths import Path


class Curve(NamedTuple):
    """A line of a figure: a label, its points, an error bar for each, and whether it is a control (drawn dashed)."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float]
    control: bool = False


ABREAST = 3
"""Axes of a figure that stand side by side: more are too small to be read on a page."""


def new_figure(count: int) -> tuple[Any, Any]:
    """A figure with so many axes, at most `ABREAST` side by side, without a display."""
    from matplotlib.figure import Figure  # slow to import, and needed nowhere else

    rows, columns = -(-count // ABREAST), min(count, ABREAST)
    drawing = Figure(figsize=(6.5 * columns, 4.6 * rows), layout="constrained")
    axes = np.atleast_1d(drawing.subplots(rows, columns)).reshape(-1)
    for empty in axes[count:]:
        drawing.delaxes(empty)
    return drawing, axes[:count]


def draw_paths(axes: Any, paths: Mapping[str, Sequence[Path]], *, baseline: str) -> None:
    """Loss along the path between two networks, a line for each name (a mean over its paths), `baseline` in black."""
    for name, several in paths.items():
        losses = np.mean([path.loss for path in several], axis=0)
        style = {"color": "black", "linestyle": "--"} if name == baseline else {}
        axes.plot(several[0].fractions, losses, label=name, marker=".", **style)
    axes.set(xlabel="fraction of the way from network 1 to network 2", ylabel="test loss (nats)", title="Along the path")
    axes.legend(frameon=False)


COLOURS = (*(f"C{k}" for k in range(10)), "black", "navy", "darkred", "darkgreen", "goldenrod", "indigo")


def marks(place: int) -> dict[str, str]:
    """Colour and marker of the line at a place; hollow from the eleventh on, for there are ten markers."""
    style = {"marker": "os^Dvp*X<>"[place % 10], "fillstyle": "full" if place < 10 else "none"}
    return style | {"color": COLOURS[place % len(COLOURS)]}


def draw_curves(
    axes: Any, curves: Sequence[Curve], *, levels: Mapping[str, float] | None = None, names: Sequence[str] = ()
) -> None:
    """Lines with error bars over a logarithmic axis.

    Args:
        axes: drawn on.
        curves: the lines.
        levels: grey horizontal lines, each broken in another way.
        names: the labels of all axes of a figure, so that a name looks the same on each; those of `curves` if not given.
    """
    places = {name: k for k, name in enumerate(names or [curve.label for curve in curves])}
    for k, curve in enumerate(curves):
        shifted = [x * 1.03 ** (k - len(curves) / 2) for x in curve.x]  # or equal curves would hide each other
        style = {"linestyle": "--" if curve.control else "-", "label": curve.label, **marks(places[curve.label])}
        axes.errorbar(shifted, curve.y, yerr=curve.error, capsize=2, **style)
    for k, (label, level) in enumerate((levels or {}).items()):
        axes.axhline(level, color="grey", linestyle=(":", "--", "-.")[k % 3], label=label)
    axes.set_xscale("log")
    ticks = sorted({x for curve in curves for x in curve.x})
    axes.set_xticks(ticks, labels=[f"{x:g}" for x in ticks], minor=False)
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def plain_logarithm(axes: Any) -> None:
    """A logarithmic y axis whose labels are written out, a few in each decade: of powers of ten there may be none on it."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.log10(high))
    steps = (1, 1.5, 2, 3, 4, 5, 7) if high < 30 * low else (1, 2, 5)
    ticks = [x * step for x in decades for step in steps if low <= x * step <= high]
    axes.set_yticks(ticks, labels=[f"{x:g}" for x in ticks])
    axes.yaxis.minorticks_off()


def one_legend(drawing: Any, axes: Sequence[Any]) -> None:
    """One legend below for all axes of a figure, in place of their own: for names that look the same on each."""
    said: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            said.setdefault(label, handle)
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    columns = min(len(said), 2 * max(1, min(len(axes), ABREAST)))
    drawing.legend(said.values(), said, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
