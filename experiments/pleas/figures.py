"""The figure: accuracy against size, for each task."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.pleas.results import Results, Side, read
from experiments.pleas.settings import CONTROL, ENSEMBLE, PARENTS, REGMEAN, SIZED, WITHOUT_DATA
from npmerge.reports.drawing import new_figure


def figures(folder: Path) -> dict[str, Any]:
    """By name of the file."""
    results = read(folder)
    drawing, axes = new_figure(len(results.tasks))
    for ax, task in zip(axes, results.tasks, strict=True):
        _draw(ax, results, task)
    return {"size": drawing}


def _draw(ax: Any, results: Results, task: str) -> None:
    """Mean and deviation over seeds; with other images dashed, in the colour of the same method."""
    for k, method in enumerate(SIZED):
        _line(ax, results, task, Side(method), color=f"C{k}", label=method)
        if method in WITHOUT_DATA and (other := results.other(task)):
            _line(ax, results, task, Side(method, None), color=f"C{k}", label=f"{method}, {other}", linestyle="--")
    for k, method in enumerate((PARENTS, ENSEMBLE, CONTROL, REGMEAN)):
        if not np.isnan(level := results.mean(task, Side(method), results.sizes[0])):
            ax.axhline(100 * level, color="grey", linestyle=("-", ":", "--", "-.")[k], label=method)
    ax.set(xlabel="operations, as a multiple of one network", ylabel="test accuracy (%)", title=results.title(task))
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _line(ax: Any, results: Results, task: str, side: Side, **style: Any) -> None:
    values = {results.flops(task, shared): list(results.values(task, side, shared).values()) for shared in results.sizes}
    known = {x: found for x, found in values.items() if found}
    middle, spread = ([float(100 * f(found)) for found in known.values()] for f in (np.mean, np.std))
    if known:
        ax.errorbar(list(known), middle, yerr=spread, marker="o", markersize=4, capsize=2, **style)
