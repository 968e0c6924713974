"""Figures: held-in against generalisation, accuracy against cost, hyper-parameters, number of networks."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.compositional.results import OVER_EXPERTS, SCORES, Results, read
from experiments.compositional.settings import BASE, CONTROLS, EXPERTS, LEARNED, MULTITASK, NEWER
from npmerge.reports.drawing import new_figure


def figures(folder: Path) -> dict[str, Any]:
    """Those that the rows have something for, by name of the file."""
    results = read(folder)
    found = {}
    for name, draw in (("scatter", _scatter), ("cost", _cost), ("sensitivity", _sensitivity), ("models", _models)):
        tasks = [task["name"] for task in results.tasks if name != "models" or _curved(results, task["name"])]
        tasks = [task for task in tasks if name != "sensitivity" or results.fields(task)]
        if tasks:
            drawing, axes = new_figure(len(tasks))
            for ax, task in zip(axes, tasks, strict=True):
                draw(ax, results, task)
                ax.set_title(task)
            found[name] = drawing
    return found


def _curved(results: Results, task: str) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in results.curves if row["task"] == task))


def _scatter(ax: Any, results: Results, task: str) -> None:
    """Means over seeds, with the deviation where there are several."""
    for name in (BASE, EXPERTS, MULTITASK, *results.methods(task)):
        pairs = [list(results.values(task, name, column).values()) for column in SCORES]
        if not all(pairs):
            continue
        x, y = (100 * float(np.mean(values)) for values in pairs)
        dx, dy = (100 * float(np.std(values, ddof=1)) if len(values) > 1 else 0 for values in pairs)
        level = name in (BASE, EXPERTS, MULTITASK)
        ax.errorbar(x, y, dy, dx, fmt="*" if level else _marker(name), color=_colour(name), elinewidth=0.5)
        label = name.partition(":")[0]
        ax.annotate(label, (x, y), fontsize=6, xytext=(3, 3), textcoords="offset points")
    ax.set(xlabel="held-in accuracy (%)", ylabel="generalisation accuracy (%)")


def _cost(ax: Any, results: Results, task: str) -> None:
    """Circles without the cost of tuning, crosses with it."""
    for name in results.methods(task):
        y = 100 * results.mean(task, name, "held_in")
        pair = results.cost(task, name), results.cost_with_tuning(task, name)
        x = [max(value, 1.0) for value in pair]
        ax.plot(x, [y, y], "-", color=_colour(name), linewidth=0.5)
        ax.plot(x[0], y, "o", color=_colour(name), markersize=4)
        ax.plot(x[1], y, "x", color=_colour(name), markersize=4)
        ax.annotate(name, (x[0], y), fontsize=6, xytext=(3, 3), textcoords="offset points")
    ax.set(xscale="log", xlabel="operations, and with tuning (x)", ylabel="held-in accuracy (%)")


def _sensitivity(ax: Any, results: Results, task: str) -> None:
    """Held-in accuracy solid, generalisation dotted, against the place in the grid."""
    for k, (method, field) in enumerate(results.fields(task)):
        rows = [row for row in results.sensitivity if (row["task"], row["method"], row["field"]) == (task, method, field)]
        values = sorted({row["value"] for row in rows})
        places = np.linspace(0, 1, len(values)) if len(values) > 1 else [0.5]
        for column, style in zip(SCORES, ("-", ":"), strict=True):
            means = [100 * np.mean([row[column] for row in rows if row["value"] == value]) for value in values]
            label = f"{method}, {field}: {values[0]:g} to {values[-1]:g}" if column == SCORES[0] else None
            ax.plot(places, means, style, color=f"C{k % 10}", marker=".", markersize=3, label=label)
    ax.set(xlabel="place in the grid, from its first value to its last", ylabel="accuracy (%)")
    ax.legend(frameon=False, fontsize=5)


def _models(ax: Any, results: Results, task: str) -> None:
    """Each with an axis of its own: held-in accuracy is less than that of the experts, as cells differ with the number."""
    right = ax.twinx()
    for k, method in enumerate(_curved(results, task)):
        for side, column, style in ((ax, OVER_EXPERTS, "-"), (right, SCORES[1], ":")):
            curve = results.curve(task, method, column)
            means = [100 * float(np.mean(x)) for x in curve.values()]
            spread = [100 * float(np.std(x, ddof=1)) if len(x) > 1 else 0 for x in curve.values()]
            side.errorbar(list(curve), means, spread, color=f"C{k % 10}", linestyle=style, elinewidth=0.5, label=method)
    ax.set(xlabel="networks merged", ylabel="held-in less each cell's expert (points, solid)")
    right.set_ylabel("generalisation (%, dotted)")
    ax.legend(frameon=False, fontsize=6)


def _marker(name: str) -> str:
    return "s" if name in LEARNED else "x" if name in CONTROLS.values() else "^" if name in NEWER else "o"


def _colour(name: str) -> str:
    if name in (BASE, EXPERTS, MULTITASK):
        return "black"
    return "C3" if name in LEARNED else "C7" if name in CONTROLS.values() else "C2" if name in NEWER else "C0"
