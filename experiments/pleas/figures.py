"""The figure: accuracy against size, for each task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pleas.findings import told
from experiments.pleas.results import Results, Side, read
from experiments.pleas.settings import DISTILLED, ENSEMBLE, PARENTS, REGMEAN, SIZED, WITHOUT_DATA
from npmerge.reports.drawing import new_figure, one_legend


def figures(folder: Path) -> dict[str, Any]:
    """By name of the file."""
    results = read(folder)
    drawing, axes = new_figure(len(results.tasks))
    for ax, task in zip(axes, results.tasks, strict=True):
        _draw(ax, results, task)
    one_legend(drawing, axes)
    return {"size": drawing}


def _draw(ax: Any, results: Results, task: str) -> None:
    """Mean and deviation over seeds; with other images hollow, in the colour of the same method."""
    for k, method in enumerate((*SIZED, DISTILLED)):
        _line(ax, results, task, Side(method), color=f"C{k}", label=method, marker="os^Dvp"[k])
        if method in WITHOUT_DATA and results.other(task):
            label = told(Side(method, None))
            _line(ax, results, task, Side(method, None), color=f"C{k}", label=label, marker="os^Dvp"[k], fillstyle="none")
    _line(ax, results, task, Side(REGMEAN), sizes=results.sizes[:1], color="black", label=REGMEAN, marker="x")
    for k, method in enumerate((PARENTS, ENSEMBLE)):
        if not np.isnan(level := results.mean(task, Side(method), results.sizes[0])):
            ax.axhline(100 * level, color="grey", linestyle=("-", ":")[k], label=method)
    ax.set(xlabel="operations, as a multiple of one network", ylabel="test accuracy (%)", title=results.title(task))


def _line(ax: Any, results: Results, task: str, side: Side, *, sizes: Sequence[int] | None = None, **style: Any) -> None:
    sizes = results.sizes if sizes is None else sizes
    values = {results.flops(task, shared): results.values(task, side, shared).values() for shared in sizes}
    known = {x: [100 * value for value in found] for x, found in values.items() if found}
    if known:
        spread = [float(np.std(found, ddof=1)) if len(found) > 1 else 0.0 for found in known.values()]
        middle = [float(np.mean(found)) for found in known.values()]
        ax.errorbar(list(known), middle, yerr=spread, markersize=5, capsize=2, **style)
