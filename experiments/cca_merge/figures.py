"""Figures: accuracy against the number of networks, against gamma, and canonical correlations by layer."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.cca_merge.results import Results, read
from experiments.cca_merge.settings import ALIGNMENTS, ENSEMBLE, PARENTS, PERMUTED, PLAIN, PROCRUSTES, REPAIRED, Block
from experiments.curves import over_seeds
from npmerge.reports.drawing import Curve, draw_curves, new_figure, one_legend


def figures(folder: Path) -> dict[str, Any]:
    """Those that the rows have something for, by name of the file."""
    results = read(folder)
    many = [block for block in results.blocks if len(block.counts) > 1]
    found = {}
    for name, blocks, draw in (
        ("models", many, _draw_models),
        ("gamma", results.blocks, _draw_gammas),
        ("correlations", [block for block in results.blocks if any(results.layers(block))], _draw_spectra),
    ):
        if blocks:
            drawing, axes = new_figure(len(blocks))
            for ax, block in zip(axes, blocks, strict=True):
                draw(ax, results, block)
            one_legend(drawing, axes)
            found[name] = drawing
    return found


def _draw_models(ax: Any, results: Results, block: Block) -> None:
    """All but the average without alignment, beside which the others could not be told apart."""
    curves: list[Curve] = []
    methods = (PARENTS, ENSEMBLE, *(m for m in ALIGNMENTS if m != PLAIN), *REPAIRED)
    for method in methods:
        values = {n: [100 * x for x in results.accuracies(block, method, n).values()] for n in block.counts}
        curves += over_seeds(method, values, control=method in (PARENTS, ENSEMBLE, *REPAIRED))
    draw_curves(ax, curves, names=methods)
    ax.set(xlabel="networks merged", ylabel="test accuracy (%)", title=results.title(block))


def _draw_gammas(ax: Any, results: Results, block: Block) -> None:
    """The mean over seeds with the fewest and the most networks; levels of the others dashed and dotted."""
    counts = sorted({min(block.counts), max(block.counts)})
    for k, n in enumerate(counts):
        most = ("fewest networks", "most networks")[k]
        for folded in (False, True):
            key = {"task": block.task, "split": block.split, "models": n, "reference": 0, "folded": folded}
            rows = [row for row in results.gammas if all(row[name] == value for name, value in key.items())]
            gammas = sorted({row["gamma"] for row in rows})
            means = [100 * np.mean([row["test"] for row in rows if row["gamma"] == gamma]) for gamma in gammas]
            if gammas:
                words, color = (", BatchNorm folded", f"C{k + 2}") if folded else ("", f"C{k}")
                ax.plot(gammas, means, color=color, marker=".", label=f"{most}: CCA{words}")
                for method, style in ((PROCRUSTES, "-."), (PERMUTED, ":")):
                    level, name = 100 * results.mean(block, method + words, n), f"{most}: {method}{words}"
                    ax.axhline(level, color=color, linestyle=style, label=name)
    ax.set_xscale("log")
    title = f"{results.title(block)}, {' and '.join(map(str, counts))} networks"
    ax.set(xlabel="gamma, in mean variances", ylabel="test accuracy (%)", title=title)


def _draw_spectra(ax: Any, results: Results, block: Block) -> None:
    """Of the first seed: canonical correlations, and dotted those of living units that a permutation pairs."""
    for k, (row, *_) in enumerate(results.layers(block)):
        for name, style in (("canonical", "-"), ("matched", ":")):
            x = (np.arange(len(row[name])) + 0.5) / max(len(row[name]), 1)
            label = f"layer {row['depth']}" if name == "canonical" else None
            ax.plot(x, row[name], style, color=f"C{k % 10}", label=label)
    ax.set(xlabel="fraction of directions or pairs", ylabel="correlation", title=results.title(block))
