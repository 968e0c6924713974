"""Figures: lines between the parents, planes through parents and merge, CKA by layer."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.patheffects import withStroke

from experiments.landscape.results import Results, read
from experiments.landscape.settings import BEFORE, LEARNED, PERMUTED, PLAIN, UNALIGNED, A, B
from experiments.run import read_rows
from npmerge import Path as Line
from npmerge.reports.drawing import draw_paths, new_figure, one_legend, plain_logarithm


def figures(folder: Path) -> dict[str, Any]:
    """By name of the file; planes of the first seed, all else of all seeds."""
    results = read(folder)
    return {"lines": _lines(results), "planes": _planes(results), "similarity": _similarity(results)}


def _lines(results: Results) -> Any:
    """Means over seeds; losses on a logarithmic axis, where one end is no parent."""
    drawing, (one, two) = new_figure(2)
    paths: dict[str, list[Line]] = {}
    for row in results.lines:
        paths.setdefault(row["alignment"], []).append(Line(*(np.array(row[column]) for column in Line._fields)))
    draw_paths(one, paths, baseline=UNALIGNED)
    for name, several in paths.items():
        style = {"color": "black", "linestyle": "--"} if name == UNALIGNED else {}
        two.plot(several[0].fractions, 100 * np.mean([p.accuracy for p in several], axis=0), label=name, marker=".", **style)
    plain_logarithm(one)
    two.set(ylabel="test accuracy (%)")
    for ax in (one, two):
        ax.set(xlabel="fraction of the way from A to B", title="")
    one_legend(drawing, (one, two))
    return drawing


def _planes(results: Results) -> Any:
    """Both with the same colours."""
    rows = [row for row in results.planes if row["seed"] == results.seeds[0]]
    drawing, axes = new_figure(len(rows))
    heights = np.concatenate([np.ravel(row["loss"]) for row in rows])
    levels = np.geomspace(max(heights.min(), 1e-3), max(heights.max(), heights.min() + 1e-3), 24)
    for ax, row in zip(axes, rows, strict=True):
        norm = LogNorm(levels[0], levels[-1])
        filled = ax.contourf(row["x"], row["y"], np.array(row["loss"]), levels=levels, norm=norm, extend="both")
        _points(ax, row)
        ax.set(xlabel="distance towards B, in weights", ylabel="distance towards the merge", title=row["plane"])
    ticks = levels[::3]
    bar = drawing.colorbar(filled, ax=list(axes), label="test loss (nats)", ticks=ticks)
    bar.ax.set_yticklabels([f"{x:.2g}" for x in ticks])
    bar.ax.minorticks_off()
    return drawing


def _points(ax: Any, row: Any) -> None:
    """The three networks and the average of A and B, with their losses."""
    before = row["plane"] == BEFORE
    a, b, merge = row["corners"]
    names = ("A", "B" if before else "B, aligned", LEARNED, PLAIN if before else PERMUTED)
    places, found = (a, b, merge, [b[0] / 2, 0.0]), [*row["at_corners"], row["at_middle"]]
    for name, (x, y), loss in zip(names, places, found, strict=True):
        ax.plot(x, y, "wo", markeredgecolor="black")
        ax.annotate(
            f"{name}\n{loss:.2f}", (x, y), xytext=(4, 4), textcoords="offset points", color="white", fontsize="small",
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )  # fmt: skip


def _similarity(results: Results) -> Any:
    drawing, (ax,) = new_figure(1)
    drawing.set_size_inches(9, 6)
    layers = results.layers()
    for one, other in dict.fromkeys((row["one"], row["other"]) for row in results.similarity):
        values = [np.mean(list(results.alike(one, other, node).values())) for node in layers]
        style = "--" if one == B else ":" if (one, other) == (A, B) else "-"
        ax.plot(range(len(layers)), values, style, marker=".", label=f"{one} and {other}")
    ax.set(ylabel="unbiased CKA", ylim=(0, 1.02))
    ax.set_xticks(range(len(layers)), [node.removeprefix("params/") for node in layers], rotation=45, ha="right")
    one_legend(drawing, (ax,))
    return drawing


def pictures(folder: Path) -> list[str]:
    """The layers whose units have a picture, of the first seed."""
    rows = read_rows(folder / "units.csv")
    return list(dict.fromkeys(row["node"] for row in rows if row["seed"] == min(r["seed"] for r in rows)))
