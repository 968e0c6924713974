"""Figures: merged accuracy against steps of expert training, and examples by difficulty."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.curves import over_seeds
from experiments.overtraining.results import Results, read
from experiments.overtraining.settings import CONTROL, EXPERTS, MERGES, MIXTURES, PLATEAU, TRAININGS
from npmerge.reports.drawing import Curve, draw_curves, marks, new_figure, one_legend


def figures(folder: Path) -> dict[str, Any]:
    """By name of the file, an axis for each setup and way of training."""
    results = read(folder)
    found = {}
    for name, draw in (("moments", _moments), ("difficulty", _difficulty)):
        places = [(setup, training) for setup in results.setups for training in TRAININGS]
        drawing, axes = new_figure(len(places))
        for ax, place in zip(axes, places, strict=True):
            draw(ax, results, *place)
        one_legend(drawing, axes)
        found[name] = drawing
    return found


def _moments(ax: Any, results: Results, setup: str, training: str) -> None:
    """Accuracy at each moment; crosses at the right are experts that stopped at a plateau."""
    curves: list[Curve] = []
    methods = (EXPERTS, *MERGES, CONTROL, *MIXTURES)
    for method in methods:
        values = {m: [100 * x for x in results.values(setup, training, method, m).values()] for m in results.moments}
        curves += over_seeds(method, values, control=method in (EXPERTS, CONTROL))
    draw_curves(ax, curves, names=methods)
    for curve in curves:
        color = marks(methods.index(curve.label))["color"]
        ax.plot(2 * results.moments[-1], 100 * results.mean(setup, training, curve.label, PLATEAU), "x", color=color)
    ax.set(xlabel="steps of expert training (x: stopped at a plateau)", ylabel="test accuracy (%), mean over tasks")
    ax.set_title(f"{setup}, {training}")


def _difficulty(ax: Any, results: Results, setup: str, training: str) -> None:
    """Of each group of training examples what the experts have right, and dashed what the average of them has."""
    for group in range(results.settings["groups"]):
        for column, style in (("expert", "-"), ("merged", "--")):
            by_moment = {m: list(results.group(setup, training, m, group, column).values()) for m in results.moments}
            known = {m: 100 * float(np.mean(v)) for m, v in by_moment.items() if v}
            label = f"fifth {group + 1}" if results.settings["groups"] == 5 else f"group {group + 1}"
            label = f"{label}, easiest" if group == 0 else label
            ax.plot(list(known), list(known.values()), style, color=f"C{group}", label=label if column == "expert" else None)
    ax.set_xscale("log", base=2)
    ax.set(
        xlabel="steps of expert training", ylabel="training examples right (%); dashed: average", title=f"{setup}, {training}"
    )
