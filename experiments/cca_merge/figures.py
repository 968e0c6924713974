"""Figures: accuracy against the number of networks, against gamma, and canonical correlations by layer."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.cca_merge.results import Results, read
from experiments.cca_merge.settings import ALIGNMENTS, ENSEMBLE, PARENTS, Block
from npmerge.reports.drawing import Curve, draw_curves, new_figure


def figures(folder: Path) -> dict[str, Any]:
    """Those that the rows have something for, by name of the file; gamma and correlations of each task's first block."""
    results = read(folder)
    many = [block for block in results.blocks if len(block.counts) > 1]
    firsts = list({block.task: block for block in reversed(results.blocks)}.values())[::-1]
    found = {}
    for name, blocks, draw in (
        ("models", many, _draw_models),
        ("gamma", firsts, _draw_gammas),
        ("correlations", firsts, _draw_spectra),
    ):
        if blocks:
            drawing, axes = new_figure(len(blocks))
            for ax, block in zip(axes, blocks, strict=True):
                draw(ax, results, block)
            found[name] = drawing
    return found


def _draw_models(ax: Any, results: Results, block: Block) -> None:
    curves = []
    for method in (PARENTS, ENSEMBLE, *ALIGNMENTS):
        values = {n: list(results.accuracies(block, method, n).values()) for n in block.counts}
        known = {n: v for n, v in values.items() if v}
        if known:
            middle, spread = ([float(100 * f(v)) for v in known.values()] for f in (np.mean, np.std))
            curves.append(Curve(method, list(known), middle, spread, method in (PARENTS, ENSEMBLE)))
    draw_curves(ax, curves)
    ax.set(xlabel="networks merged", ylabel="test accuracy (%)", title=results.title(block))


def _draw_gammas(ax: Any, results: Results, block: Block) -> None:
    """The mean over seeds for each number of networks; validation dashed."""
    for k, n in enumerate(block.counts):
        place = (block.task, block.split, n)
        rows = [r for r in results.gammas if (r["task"], r["split"], r["models"]) == place and r["reference"] == 0]
        gammas = sorted({row["gamma"] for row in rows})
        for by, style in (("test", "-"), ("validation", ":")):
            means = [100 * np.mean([row[by] for row in rows if row["gamma"] == gamma]) for gamma in gammas]
            ax.plot(gammas, means, style, color=f"C{k % 10}", marker=".", label=f"{n} networks, {by}")
    ax.set_xscale("log")
    ax.set(xlabel="gamma, in mean variances", ylabel="accuracy of the CCA average (%)", title=results.title(block))
    ax.legend(frameon=False, fontsize="small")


def _draw_spectra(ax: Any, results: Results, block: Block) -> None:
    """Of the first seed: canonical correlations, and dotted those of units that a permutation pairs."""
    for k, (row, *_) in enumerate(results.layers(block)):
        for name, style in (("canonical", "-"), ("matched", ":")):
            x = (np.arange(len(row[name])) + 0.5) / max(len(row[name]), 1)
            label = f"layer {row['depth']}" if name == "canonical" else None
            ax.plot(x, row[name], style, color=f"C{k % 10}", label=label)
    ax.set(xlabel="fraction of directions or pairs", ylabel="correlation", title=results.title(block))
    ax.legend(frameon=False, fontsize="small")
