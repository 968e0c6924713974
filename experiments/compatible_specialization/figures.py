"""Figures: loss on each target against steps of fine-tuning, CKA of the experts, cost of each way, shares."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.compatible_specialization.results import Results, read
from experiments.compatible_specialization.settings import (
    BASE,
    BEST,
    BOTH,
    CLOSED,
    CONTROLS,
    EQUAL_FEATURES,
    EQUAL_OUTPUTS,
    EXPERTS,
    MERGED,
    ROUTED,
    SWEPT,
    routing,
)
from experiments.compatible_specialization.similarity import MADE, READ
from npmerge.reports.charts import literal
from npmerge.reports.drawing import Curve, draw_curves, new_figure

GROUPS = {
    "losses": (BASE, BEST, BOTH, *CLOSED),
    "learned": (BASE, *ROUTED, *MERGED, *CONTROLS),
}
"""Ways that are drawn together, by the name of their figure."""

HIDDEN = (EQUAL_FEATURES, EQUAL_OUTPUTS)
"""Told in tables: in the figure they would hide what is beside them."""


def figures(folder: Path) -> dict[str, Any]:
    """By name of the file."""
    results = read(folder)
    found = {}
    for name, group in GROUPS.items():
        found[name], axes = new_figure(len(results.targets))
        for ax, target in zip(axes, results.targets, strict=True):
            _draw_losses(ax, results, target, group)
    found["cka"], (one, two) = new_figure(2)
    for ax, place in ((one, READ), (two, MADE)):
        _draw_cka(ax, results, place)
    found["cost"], (ax,) = new_figure(1)
    _draw_cost(ax, results)
    by_target = (("shares", results.sweeps, _draw_shares), ("usage", results.usage, _draw_usage))
    for name, rows, draw in (*by_target, ("tokens", results.tokens, _draw_tokens)):
        if rows:
            found[name], axes = new_figure(len(results.targets))
            for ax, target in zip(axes, results.targets, strict=True):
                draw(ax, results, target)
    return found


def _draw_usage(ax: Any, results: Results, target: str) -> None:
    """By block the mean weight of the second expert among the block's own two, after the most steps."""
    last = max(results.steps)
    for way in (way for way in results.ways if way in ROUTED):
        rows = [r for r in results.usage if (r["target"], r["steps"], r["way"]) == (target, last, way)]
        blocks = sorted({row["block"] for row in rows})
        share = [np.mean([r["weights"][0][1] / sum(r["weights"][0]) for r in rows if r["block"] == b]) for b in blocks]
        ax.plot(np.array(blocks) + 1, share, marker=".", label=way)
    ax.axhline(0.5, color="grey", linestyle=":")
    ax.set(
        xlabel="block",
        ylabel=f"weight of the expert for {EXPERTS[1]}",
        title=f"{target}, {last} steps",
        ylim=(0, 1),
        xticks=np.array(blocks) + 1,
    )
    ax.legend(frameon=False, fontsize="small")


def _draw_tokens(ax: Any, results: Results, target: str) -> None:
    """A test window: for each character and block the weight of the second expert in a router over one layer."""
    rows = [row for row in results.tokens if (row["target"], row["way"]) == (target, routing(1))]
    rows = sorted(rows, key=lambda row: row["block"])
    if not rows:
        return
    ax.imshow([np.array(row["weights"])[:, 1] for row in rows], aspect="auto", cmap="coolwarm", vmin=0, vmax=1)
    text = str(rows[0]["text"][0]).replace("\n", "\u00b6")
    ax.set_xticks(range(len(text)), labels=list(map(literal, text)), fontsize=6, family="monospace")
    ax.set(yticks=range(len(rows)), yticklabels=[row["block"] + 1 for row in rows], ylabel="block")
    ax.set_title(f"{target}: blue for {EXPERTS[0]}, red for {EXPERTS[1]}", fontsize="medium")


def _draw_losses(ax: Any, results: Results, target: str, group: tuple[str, ...]) -> None:
    """Deviations over seeds (n - 1), none for one seed."""
    curves, level = [], {}
    for way in (way for way in results.ways if way in group and way not in HIDDEN):
        values = [list(results.losses(target, n, way).values()) for n in results.steps]
        means, spread = [float(np.mean(v)) for v in values], [float(np.std(v, ddof=len(v) > 1)) for v in values]
        if way == BASE:
            level[way] = means[0]
        else:
            curves.append(Curve(way, results.steps, means, spread, way in CONTROLS))
    draw_curves(ax, curves, levels=level)
    ax.set(xlabel="steps of fine-tuning of the experts", ylabel="test loss (nats per character)", title=target)


def _draw_cka(ax: Any, results: Results, place: str) -> None:
    for k, n in enumerate(results.steps):
        for target, style in zip(results.targets, ("-", ":"), strict=False):
            blocks = sorted({row["block"] for row in results.cka if row["place"] == place})
            values = [np.mean(list(results.alike(target, n, place, b).values())) for b in blocks]
            ax.plot(np.array(blocks) + 1, values, style, color=f"C{k}", marker=".", label=f"{n} steps, {target}")
    ax.set(xlabel="block", ylabel="unbiased CKA of the two experts", title=place, xticks=np.array(blocks) + 1)
    ax.legend(frameon=False, fontsize="small")


def _draw_cost(ax: Any, results: Results) -> None:
    """After the most steps, the mean over targets and seeds."""
    last = max(results.steps)
    for k, way in enumerate(way for way in results.ways if way not in HIDDEN):
        loss = np.mean([np.mean(list(results.losses(t, last, way).values())) for t in results.targets])
        ax.plot(results.mean("flops", way) / 1e6, loss, "os^Dvp*X"[k % 8], label=way)
    ax.set(xlabel="million operations for a character", ylabel=f"test loss (nats), experts of {last} steps")
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _draw_shares(ax: Any, results: Results, target: str) -> None:
    for k, n in enumerate(results.steps):
        for way, style in zip(SWEPT, ("-", "--", ":"), strict=True):
            rows = [r for r in results.sweeps if (r["target"], r["steps"], r["way"]) == (target, n, way)]
            shares = sorted({row["share"] for row in rows})
            means = [np.mean([row["validation"] for row in rows if row["share"] == share]) for share in shares]
            if shares:
                ax.plot(shares, means, style, color=f"C{k}", label=f"{way}, {n} steps")
    ax.set(xlabel="share of the second expert", ylabel="validation loss (nats)", title=target)
    ax.legend(frameon=False, fontsize="small")
