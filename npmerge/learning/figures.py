"""Figures of a learned merge: the loss, the share of each model by depth, the coefficients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npmerge.learning.learner import Learnt
from npmerge.learning.shares import Shares
from npmerge.reports.drawing import new_figure

MANY = 100
"""Coefficients in one bin from which on their numbers are drawn on a logarithmic scale."""


def draw(folder: Path, learnt: Learnt, shares: Shares, names: Sequence[str]) -> None:
    """Write the figures, without what differs between versions of the library that draws them."""
    figures = {
        "loss": loss_figure(learnt),
        "shares": share_figure(shares, names),
        "coefficients": coefficient_figure(learnt.coefficients, names),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})


def loss_figure(learnt: Learnt) -> Any:
    """Training loss of every step, held-out loss where it was judged."""
    figure, (axes,) = new_figure(1)
    history = learnt.result.history
    axes.plot(np.arange(1, len(history.loss) + 1), history.loss, color="tab:grey", linewidth=0.8, label="batch")
    if len(history.held_out_loss):
        axes.plot(history.held_out_step, history.held_out_loss, marker="o", color="tab:red", label="held out")
    axes.set(xlabel="step", ylabel="objective", title="Loss")
    axes.legend(frameon=False)
    return figure


def share_figure(shares: Shares, names: Sequence[str]) -> Any:
    """Mean coefficient by depth, a line for each model; of two that add up to one the second alone, the other is its mirror."""
    figure, (axes,) = new_figure(1)
    figure.set_figwidth(max(6.5, 3 + 0.18 * len(shares.names)))
    mirrored = len(names) == 2 and np.allclose(shares.values.sum(1), 1, atol=1e-4)
    for name, column in [*zip(names, shares.values.T, strict=True)][mirrored:]:
        axes.plot(range(len(column)), column, marker=".", label=name)
    axes.axhline(1 / len(names), color="grey", linestyle=":", linewidth=0.8)
    axes.set_xticks(range(len(shares.names)), labels=shares.names, rotation=90, fontsize=6)
    axes.set(ylabel="mean coefficient", title="Share of each model by depth")
    axes.legend(frameon=False, fontsize="small")
    return figure


def coefficient_figure(coefficients: Mapping[str, np.ndarray], names: Sequence[str]) -> Any:
    """A histogram of all coefficients of each model, on one scale; of two that add up to one of the second alone."""
    figure, (axes,) = new_figure(1)
    low = min(float(x.min()) for x in coefficients.values())
    high = max(float(x.max()) for x in coefficients.values())
    edges = np.linspace(low, high if high > low else low + 1e-3, 61)
    mirrored = len(names) == 2 and all(np.allclose(x.sum(0), 1, atol=1e-4) for x in coefficients.values())
    most = 0
    for k, name in [*enumerate(names)][mirrored:]:
        counts = sum(np.histogram(x[k], edges)[0] for x in coefficients.values())
        axes.stairs(counts, edges, label=name)
        most = max(most, int(np.max(counts)))
    scale = "linear" if most < MANY else "log"
    axes.set(xlabel="coefficient", ylabel="how many", yscale=scale, title="Coefficients")
    axes.legend(frameon=False, fontsize="small")
    return figure
