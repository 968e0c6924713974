"""Figures: test accuracy against labelled images, against the number of networks, and by split."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.np_merge.results import Results
from experiments.np_merge.settings import (
    AVERAGE,
    BEST,
    CONTROLS,
    ENSEMBLE,
    METHODS,
    PARAMETERS,
    PARENTS,
    UNALIGNED,
    UNLABELLED,
    Block,
)
from experiments.np_merge.tables import axis, point
from npmerge.reports.drawing import Curve, draw_curves, new_figure

NAMES = {"labelled": "labels", "models": "models", "split": "splits"}
LEVELS = {PARENTS: ":", BEST: "-.", AVERAGE: "--", ENSEMBLE: "-"}
LABELS = {"labelled": "labelled images", "models": "networks merged"}


def figures(results: Results) -> dict[str, Any]:
    """Those that the rows have something for, by file name."""
    found = {}
    for across, name in NAMES.items():
        blocks = [b for b in results.settings.blocks if b.across == across and any(map(results.values, results.jobs(b)))]
        panels = [(b, s) for b in blocks for s in (b.splits if across != "split" else b.splits[:1])]
        if panels:
            drawing, axes = new_figure(len(panels))
            for ax, (block, division) in zip(axes, panels, strict=True):
                if across == "split":
                    _draw_splits(ax, results, block)
                else:
                    _draw_line(ax, results, block, division)
            found[name] = drawing
    return found


def _spread(values: Sequence[float]) -> float:
    """The deviation over seeds, of one seed none."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _draw_line(ax: Any, results: Results, block: Block, division: str) -> None:
    task, fixed = results.settings.task(block.task), {"split": division}
    curves: list[Curve] = []
    for method in sorted(block.methods, key=METHODS.index):
        places = [(value, point(results, block, method, {**fixed, block.across: value})) for value in axis(block, block.across)]
        known = [(x, results.values(place), place.labelled) for x, place in places if results.values(place)]
        if block.across == "labelled" and method in UNLABELLED and known:
            ax.axhline(float(np.mean(known[0][1])), color="grey", linestyle=LEVELS[method], label=method)
        elif known:
            x = [labelled if block.across == "labelled" else float(value) for value, _, labelled in known]
            means, spread = ([float(f(v)) for _, v, _ in known] for f in (np.mean, _spread))
            curves.append(Curve(method, x, means, spread, method in CONTROLS))
    if curves:
        draw_curves(ax, curves)
    ax.set(xlabel=LABELS[block.across], ylabel="test accuracy", title=f"{task.network}, {task.data}, split {fixed['split']}")


def _draw_splits(ax: Any, results: Results, block: Block) -> None:
    """The merge that is learned as a line, what it starts from dashed, in one colour for each alignment."""
    task = results.settings.task(block.task)
    for k, start in enumerate(block.starts):
        for method, style in ((AVERAGE, ":"), (PARAMETERS, "-"), *((name, "--") for name in CONTROLS)):
            if method not in block.methods or method in UNALIGNED:
                continue
            values = [results.values(point(results, block, method, {"start": start, "split": s})) for s in block.splits]
            means, spread = ([float(f(v)) if v else np.nan for v in values] for f in (np.mean, _spread))
            x = np.arange(len(means)) + 0.04 * (k - len(block.starts) / 2)
            ax.errorbar(x, means, spread, color=f"C{k}", linestyle=style, marker="osD"["-:".find(style)], capsize=2,
                        label=f"{method}, {start}")  # fmt: skip
    for method in (BEST, ENSEMBLE):
        if method in block.methods:
            values = [results.values(point(results, block, method, {"split": s})) for s in block.splits]
            means = [float(np.mean(v)) if v else np.nan for v in values]
            ax.plot(range(len(means)), means, LEVELS[method], color="grey", label=method)
    ax.set_xticks(range(len(block.splits)), labels=list(block.splits))
    ax.set(xlabel="split", ylabel="test accuracy", title=f"{task.network}, {task.data}")
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
