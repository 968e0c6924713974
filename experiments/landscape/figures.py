"""Figures: lines between the parents, planes through parents and merge, CKA by layer."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.landscape.results import Results, read
from experiments.landscape.settings import BEFORE, LEARNED, UNALIGNED, A, B
from experiments.run import read_rows
from npmerge import Path as Line
from npmerge.reports.drawing import draw_paths, new_figure


def figures(folder: Path) -> dict[str, Any]:
    """By name of the file; planes of the first seed, all else of all seeds."""
    results = read(folder)
    lines, (one, two) = new_figure(2)
    paths: dict[str, list[Line]] = {}
    for row in results.lines:
        paths.setdefault(row["alignment"], []).append(Line(*(np.array(row[column]) for column in Line._fields)))
    draw_paths(one, paths, baseline=UNALIGNED)
    for name, several in paths.items():
        style = {"color": "black", "linestyle": "--"} if name == UNALIGNED else {}
        two.plot(several[0].fractions, 100 * np.mean([p.accuracy for p in several], axis=0), label=name, marker=".", **style)
    two.set(xlabel="fraction of the way from A to B", ylabel="test accuracy (%)")
    two.legend(frameon=False)
    found = {"lines": lines, "similarity": _similarity(results)}
    first = [row for row in results.planes if row["seed"] == results.seeds[0]]
    drawing, axes = new_figure(len(first))
    for ax, row in zip(axes, first, strict=True):
        _plane(drawing, ax, row)
    return found | {"planes": drawing}


def _plane(drawing: Any, ax: Any, row: Any) -> None:
    heights = np.array(row["loss"])
    levels = np.geomspace(max(heights.min(), 1e-3), max(heights.max(), heights.min() + 1e-3), 16)
    filled = ax.contourf(row["x"], row["y"], heights, levels=levels, cmap="viridis", extend="both")
    drawing.colorbar(filled, ax=ax, label="test loss (nats)", format="%.2g")
    second = "B" if row["plane"] == BEFORE else "B, aligned"
    for name, (x, y) in zip(("A", second, LEARNED), row["corners"], strict=True):
        ax.plot(x, y, "wo", markeredgecolor="black")
        ax.annotate(name, (x, y), xytext=(4, 6), textcoords="offset points", color="white", fontsize="small")
    ax.set(xlabel="distance towards B, in weights", ylabel="distance towards the merge", title=row["plane"])


def _similarity(results: Results) -> Any:
    drawing, (ax,) = new_figure(1)
    layers = results.layers()
    for one, other in dict.fromkeys((row["one"], row["other"]) for row in results.similarity):
        values = [np.mean(list(results.alike(one, other, node).values())) for node in layers]
        style = "--" if one == B else ":" if (one, other) == (A, B) else "-"
        ax.plot(np.arange(1, len(layers) + 1), values, style, marker=".", label=f"{one} and {other}")
    ax.set(xlabel="layer", ylabel="unbiased CKA", ylim=(0, 1.02))
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return drawing


def pictures(folder: Path) -> list[str]:
    """The layers whose units have a picture, of the first seed."""
    rows = read_rows(folder / "units.csv")
    return list(dict.fromkeys(row["node"] for row in rows if row["seed"] == min(r["seed"] for r in rows)))
