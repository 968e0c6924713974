"""Figures: accuracy by alignment, of closed forms and of what is learned against the number of networks, and what both cost."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.curves import over_seeds
from experiments.scaling.findings import BESIDE_CONTROLS
from experiments.scaling.laws import ERROR, laws
from experiments.scaling.results import Results, read
from experiments.scaling.settings import (
    ALIGNMENTS,
    AVERAGE,
    CLOSED,
    CONTROL,
    CONTROLS,
    ENSEMBLE,
    FISHER,
    LEARNED,
    LONG,
    NONE,
    PARENTS,
    REGMEAN,
    Block,
)
from npmerge.reports.drawing import Curve, draw_curves, marks, new_figure, one_legend, plain_logarithm

Way = tuple[str, str | None]
Draw = Callable[[Any, Results, Block], None]


def figures(folder: Path) -> dict[str, Any]:
    """By name of the file, an axis for each block that has something to show."""
    results = read(folder)
    aligned = [block for block in results.blocks if len(block.alignments) > 1]
    lawful = [block for block in results.blocks if any(x.block == block for x in laws(results))]
    found = {}
    kinds: tuple[tuple[str, Draw, Sequence[Block]], ...] = (
        ("alignments", _alignments, aligned),
        ("closed", _closed, results.blocks),
        ("learned", _learned, results.blocks),
        ("gains", _gains, results.blocks),
        ("laws", _laws, lawful),
        ("cost", _cost, results.blocks),
        ("memory", _memory, results.blocks[:1]),  # the same for all: it hangs on sizes alone
    )
    for name, draw, blocks in kinds:
        if blocks:
            drawing, axes = new_figure(len(blocks))
            for ax, block in zip(axes, blocks, strict=True):
                draw(ax, results, block)
            one_legend(drawing, axes)
            found[name] = drawing
    return found


def _alignments(ax: Any, results: Results, block: Block) -> None:
    _errors(ax, results, block, [(PARENTS, None), (ENSEMBLE, None), *((AVERAGE, alignment) for alignment in ALIGNMENTS)])


def _closed(ax: Any, results: Results, block: Block) -> None:
    _errors(ax, results, block, [(PARENTS, None), (ENSEMBLE, None), *((name, None) for name in CLOSED)])


def _learned(ax: Any, results: Results, block: Block) -> None:
    _errors(ax, results, block, [(name, None) for name in (AVERAGE, *LEARNED, *CONTROLS)])


def _errors(ax: Any, results: Results, block: Block, ways: Sequence[Way]) -> None:
    """Test errors on a logarithmic axis: on a linear one those without alignment leave the others no room."""
    labels = {way: way[0] if way[1] is None else f"average, {way[1]}" for way in ways}
    curves: list[Curve] = []
    for (method, alignment), label in labels.items():
        values = {n: [100 * (1 - x) for x in results.values(block, method, n, alignment).values()] for n in block.counts}
        curves += over_seeds(label, values, control=method in (PARENTS, ENSEMBLE, *CONTROLS))
    draw_curves(ax, curves, names=list(labels.values()))
    plain_logarithm(ax)
    ax.set(xlabel="networks merged", ylabel="test error (%), bars: deviation over seeds", title=block.name)


def _gains(ax: Any, results: Results, block: Block) -> None:
    """What is learned minus its control; ten points and more are drawn closer."""
    curves: list[Curve] = []
    labels = {pair: pair.better + (f", {pair.alignment} alignment" if pair.alignment else "") for pair in BESIDE_CONTROLS}
    for pair, label in labels.items():
        values = {}
        for n in block.counts:
            found = results.difference(block, pair.better, pair.than, [n], of=pair.alignment, over=pair.alignment)
            values[n] = [100 * x for x in found.values] if found is not None else []
        curves += over_seeds(label, values)
    draw_curves(ax, curves, names=list(labels.values()))
    ax.axhline(0, color="grey", linewidth=0.8)
    ax.set_yscale("symlog", linthresh=2)
    ticks = [-20, -10, -5, -2, -1, 0, 1, 2, 5]
    ax.set_yticks(ticks, labels=[f"{x:g}" for x in ticks])
    ax.set(xlabel="networks merged", ylabel="points above the average fine-tuned with as many steps", title=block.name)


def _laws(ax: Any, results: Results, block: Block) -> None:
    """Test errors as points, laws that hold as lines."""
    every = [x for x in laws(results) if x.what == ERROR]
    names = list(dict.fromkeys(x.name for x in every))
    for fitted in (x for x in every if x.block == block):
        curve, style = results.curve(block, fitted.method, fitted.alignment), marks(names.index(fitted.name))
        ax.plot(list(curve), [100 * (1 - x) for x in curve.values()], linestyle="", label=fitted.name, **style)
        if fitted.law.holds:
            between = np.geomspace(fitted.law.low, fitted.law.high, 50)
            ax.plot(between, [fitted.law.at(n) for n in between], color=style["color"], linewidth=0.8)
    _axes(ax, block)
    plain_logarithm(ax)
    ax.set(xlabel="networks merged", ylabel="test error (%)", title=block.name)


def _cost(ax: Any, results: Results, block: Block) -> None:
    """CPU seconds of alignments, dashed, and of merges without them."""
    curves = {f"align: {a}": results.curve(block, AVERAGE, a, "aligning") for a in ALIGNMENTS if a != NONE}
    for method in (AVERAGE, REGMEAN, FISHER, *LEARNED, CONTROL, LONG):
        curves[method] = results.curve(block, method, None, "merging")
    for k, (label, curve) in enumerate(curves.items()):
        if curve:
            style = "--" if label.startswith("align: ") else "-"
            ax.plot(list(curve), list(curve.values()), style, label=label, **marks(k))
    _axes(ax, block)
    ax.set(xlabel="networks merged", ylabel="CPU seconds", title=block.name)


def _memory(ax: Any, results: Results, block: Block) -> None:
    """Of a step: predicted with a line, planned with dots."""
    for k, method in enumerate((*LEARNED, CONTROL)):
        for column, style in (("predicted", "-"), ("planned", "o")):
            curve = results.curve(block, method, None, column)
            if curve:
                megabytes = [x / 1e6 for x in curve.values()]
                ax.plot(list(curve), megabytes, style, color=f"C{k}", label=f"{method}, {column}")
    _axes(ax, block)
    ax.set(xlabel="networks merged", ylabel="MB of a step", title="the same for all blocks")


def _axes(ax: Any, block: Block) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(block.counts, labels=[str(n) for n in block.counts], minor=False)
    ax.xaxis.minorticks_off()
