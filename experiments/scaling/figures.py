"""Figures: accuracy by alignment and of what is learned against the number of networks, and what both cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.scaling.results import Results, read
from experiments.scaling.settings import AVERAGE, CONTROL, CONTROLS, ENSEMBLE, LEARNED, LONG, NONE, PARENTS, Block
from npmerge.reports.drawing import Curve, draw_curves, new_figure

Way = tuple[str, str | None]


def figures(folder: Path) -> dict[str, Any]:
    """By name of the file, an axis for each block."""
    results = read(folder)
    found = {}
    for name, draw in (("alignments", _alignments), ("learned", _learned), ("cost", _cost), ("memory", _memory)):
        drawing, axes = new_figure(len(results.blocks))
        for ax, block in zip(axes, results.blocks, strict=True):
            draw(ax, results, block)
        found[name] = drawing
    return found


def _alignments(ax: Any, results: Results, block: Block) -> None:
    ways: list[Way] = [(PARENTS, None), (ENSEMBLE, None), *((AVERAGE, alignment) for alignment in block.alignments)]
    _accuracies(ax, results, block, ways)


def _learned(ax: Any, results: Results, block: Block) -> None:
    _accuracies(ax, results, block, [(name, None) for name in (AVERAGE, *LEARNED, *CONTROLS)])


def _accuracies(ax: Any, results: Results, block: Block, ways: Sequence[Way]) -> None:
    curves = []
    for method, alignment in ways:
        values = {n: list(results.values(block, method, n, alignment).values()) for n in block.counts}
        known = {n: v for n, v in values.items() if v}
        if known:
            middle, spread = ([float(100 * f(v)) for v in known.values()] for f in (np.mean, np.std))
            label = method if alignment is None else f"average, {alignment}"
            curves.append(Curve(label, list(known), middle, spread, method in (PARENTS, ENSEMBLE, *CONTROLS)))
    draw_curves(ax, curves)
    ax.set(xlabel="networks merged", ylabel="test accuracy (%)", title=block.name)


def _cost(ax: Any, results: Results, block: Block) -> None:
    """CPU seconds of alignments, and of merges without them."""
    curves = {f"align: {a}": results.curve(block, AVERAGE, a, "aligning") for a in block.alignments if a != NONE}
    for method in (AVERAGE, *LEARNED, CONTROL, LONG):
        curves[method] = results.curve(block, method, None, "merging")
    _logarithmic(ax, curves)
    ax.set(xlabel="networks merged", ylabel="CPU seconds", title=block.name)


def _memory(ax: Any, results: Results, block: Block) -> None:
    """Of a step: predicted with a line, planned with dots."""
    for k, method in enumerate((*LEARNED, CONTROL)):
        for column, style in (("predicted", "-"), ("planned", "o")):
            curve = results.curve(block, method, None, column)
            if curve:
                megabytes = [x / 1e6 for x in curve.values()]
                ax.plot(list(curve), megabytes, style, color=f"C{k}", label=f"{method}, {column}")
    _axes(ax)
    ax.set(xlabel="networks merged", ylabel="MB of a step", title=block.name)


def _logarithmic(ax: Any, curves: dict[str, dict[int, float]]) -> None:
    for k, (label, curve) in enumerate(curves.items()):
        if curve:
            ax.plot(list(curve), list(curve.values()), marker="os^Dvp*X"[k % 8], label=label)
    _axes(ax)


def _axes(ax: Any) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
