"""Figures: flows of features from the base through its fine-tunes to merges, and SLERP over t."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.universal_features.results import Results, mean, read
from experiments.universal_features.settings import BASE, CODER, CONTROL, NP, PARENTS, SLERP, STORIES, TASK, TIES
from npmerge.reports.drawing import new_figure

COLOURS = {STORIES: "C0", CODER: "C1", "both": "C2", "base": "C7", "new": "0.85"}
GAP, BAR = 0.35, 0.06


def figures(folder: Path) -> dict[str, Any]:
    """By name of the file; flows are means over seeds."""
    results, found = read(folder), {}
    found["flows"], axes = new_figure(3)
    for ax, merge in zip(axes, (SLERP, NP, CONTROL), strict=True):
        draw_flows(ax, results, merge)
    found["slerp"], (ax,) = new_figure(1)
    _draw_slerp(ax, results)
    return found


def draw_flows(ax: Any, results: Results, merge: str) -> None:
    """Bars are the features of the base, of its fine-tunes and of a merge, bands those that persist, in shares of each."""
    places = {BASE: (0.0, 0.5 + GAP / 2), CODER: (1.0, 0.0), STORIES: (1.0, 1 + GAP), merge: (2.0, 0.5 + GAP / 2)}
    origins = {name: mean(results.origin(merge, name)) for name in ("lua", "both", "plays", "base", "neither")}
    _bar(ax, places[BASE], {BASE: (1.0, COLOURS["base"])})
    for parent in PARENTS:
        new = mean(results.emerged(BASE, parent))
        _bar(ax, places[parent], {"from the base": (1 - new, COLOURS["base"]), "new": (new, COLOURS["new"])})
        kept = mean(results.kept(BASE, parent))
        start = 1 - kept if parent == STORIES else 0.0
        _band(ax, (places[BASE], start, kept), (places[parent], 0.0, 1 - new), COLOURS["base"])
        ax.annotate(f"{100 * kept:.0f} % persist", (0.5, places[parent][1] * 0.6 + 0.45), fontsize="small", ha="center")
    colours = (COLOURS[CODER], COLOURS["both"], COLOURS[STORIES], COLOURS["base"], COLOURS["new"])
    _bar(ax, places[merge], {k: (x, c) for (k, x), c in zip(origins.items(), colours, strict=True)})
    for parent, start, share in (
        (CODER, 0.0, origins["lua"] + origins["both"]),
        (STORIES, origins["lua"], origins["both"] + origins["plays"]),
    ):
        kept = mean(results.kept(parent, merge))
        _band(ax, (places[parent], 0.0, kept), (places[merge], start, share), COLOURS[parent])
        ax.annotate(f"{100 * kept:.0f} % persist", (1.5, places[parent][1] * 0.6 + 0.45), fontsize="small", ha="center")
    for name, (x, y) in places.items():
        ax.annotate(name, (x, y + 1.03), ha="center", fontsize="small")
    ax.set(xlim=(-0.4, 2.4), ylim=(-0.05, 2.2 + GAP), title=f"Features, {merge}")
    ax.axis("off")


def _bar(ax: Any, place: tuple[float, float], parts: dict[str, tuple[float, Any]]) -> None:
    x, y = place
    for size, colour in parts.values():
        ax.bar(x, size, width=2 * BAR, bottom=y, color=colour, edgecolor="black", linewidth=0.5)
        y += size


def _band(ax: Any, left: tuple, right: tuple, colour: Any) -> None:
    """A band between parts of two bars, each given by its place, where it starts and how high it is."""
    t = np.linspace(0, 1, 50)
    smooth = t * t * (3 - 2 * t)
    ((x0, y0), a, high_a), ((x1, y1), b, high_b) = left, right
    low = (y0 + a) * (1 - smooth) + (y1 + b) * smooth
    high = (y0 + a + high_a) * (1 - smooth) + (y1 + b + high_b) * smooth
    ax.fill_between(x0 + BAR + (x1 - x0 - 2 * BAR) * t, low, high, color=colour, alpha=0.35, linewidth=0)


def _draw_slerp(ax: Any, results: Results) -> None:
    ts = sorted({row["t"] for row in results.slerp})
    columns = {"plays": lambda r: r["plays"], "Lua": lambda r: r["Lua"], "mean": lambda r: (r["plays"] + r["Lua"]) / 2}
    for name, value in columns.items():
        ax.plot(ts, [np.mean([value(r) for r in results.slerp if r["t"] == t]) for t in ts], marker=".", label=name)
    ax.axvline(results.settings["t"], color="grey", linestyle=":", label=f"t = {results.settings['t']:g}, published")
    for k, name in enumerate(merge for merge in (TASK, TIES, NP, CONTROL) if results.losses(merge)):
        ax.axhline(mean(results.losses(name)), color=f"C{k + 3}", linestyle="--", label=f"{name}, mean")
    ax.set(xlabel="t, from the fine-tune to Lua to that to plays", ylabel="test loss (nats per character)")
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
