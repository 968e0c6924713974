"""What a learned merge says: `report.md`, `history.json` and figures, the same bytes for the same merge."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npmerge.learning.learner import Learner, Learnt
from npmerge.learning.shares import Shares, shares_of
from npmerge.report import markdown_table, new_figure

FILES = ("report.md", "history.json", "loss.png", "shares.png", "coefficients.png")


def write_pages(folder: Path, learner: Learner, learnt: Learnt, names: Sequence[str]) -> None:
    """Write all files of a learned merge into its folder.

    Args:
        folder: of the result.
        learner: what was asked for.
        learnt: what became of it.
        names: of the models, in the order of the coefficients.
    """
    shares = shares_of(learnt.coefficients)
    history = json.dumps(content(learner, learnt, shares, names), indent=1, allow_nan=False)
    (folder / "history.json").write_text(history + "\n", encoding="utf-8")
    (folder / "report.md").write_text("\n".join(page(learner, learnt, shares, names)), encoding="utf-8")
    drawn = {
        "loss": loss_figure(learnt),
        "shares": share_figure(shares, names),
        "coefficients": coefficient_figure(learnt.coefficients, names),
    }
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})


def content(learner: Learner, learnt: Learnt, shares: Shares, names: Sequence[str]) -> dict[str, Any]:
    """What `history.json` holds; None stands for what is not finite."""
    history = learnt.result.history
    return {
        "status": learnt.result.status,
        "loss": _plain(history.loss),
        "held_out_step": history.held_out_step.tolist(),
        "held_out_loss": _plain(history.held_out_loss),
        "evaluation": {
            "examples": learnt.measured_on,
            "held_out": learner.parts.held_out is not None,
            "networks": {name: row._asdict() for name, row in learnt.rows.items()},
        },
        "shares": {
            "models": list(names),
            "modules": {name: _plain(x) for name, x in zip(shares.names, shares.values, strict=True)},
        },
    }


def page(learner: Learner, learnt: Learnt, shares: Shares, names: Sequence[str]) -> list[str]:
    """Lines of `report.md`."""
    block, train = learner.block, learner.parts.train
    values = learner.values
    lines = ["# A learned merge", "", *_table(learner, learnt), "", "## What was learned", ""]
    lines += [
        f"From {learner.recipe.merge_method} on: {values.granularity}, {values.constraint}, {values.objective}. "
        f"{block.steps} steps of {block.batch_size} of the {len(train.inputs):,} examples of {train.name}, seed {block.seed}; "
        f"{_ended(learnt)}",
        "",
        "![loss](loss.png)",
        "",
        "![shares](shares.png)",
        "",
        "![coefficients](coefficients.png)",
        "",
        "Mean coefficient of each model, from the inputs to the outputs:",
        "",
    ]
    rows = [(name, *(f"{v:.4f}" for v in x)) for name, x in zip(shares.names, shares.values.tolist(), strict=True)]
    return [*lines, *markdown_table(("module", *names), rows), ""]


def told(learner: Learner, learnt: Learnt) -> list[str]:
    """What the terminal shows."""
    rows = [f"{name}: accuracy {x.accuracy:.4f}, loss {x.loss:.4f}" for name, x in learnt.rows.items()]
    return [f"learned: {_ended(learnt)}", *rows, *([] if not rows else [_measured_on(learner, learnt)])]


def _ended(learnt: Learnt) -> str:
    history, status = learnt.result.history, learnt.result.status
    said = f"{status} after {len(history.loss)} steps"
    if status == "diverged":
        said = f"diverged: the loss of step {len(history.loss)} or its gradient is not finite, and the last good theta is kept"
    if not len(history.held_out_loss):
        return f"{said}; without held-out examples the last theta is kept, not the best."
    best = int(np.nanargmin(history.held_out_loss)) if np.isfinite(history.held_out_loss).any() else 0
    first, lowest = history.held_out_loss[0], history.held_out_loss[best]
    return (
        f"{said}; held-out loss {first:.4f} at the start, {lowest:.4f} at its best, after step {history.held_out_step[best]}."
    )


def _table(learner: Learner, learnt: Learnt) -> list[str]:
    if not learnt.rows:
        return ["The examples have no labels: no accuracy can be told."]
    rows = [(name, f"{x.accuracy:.4f}", f"{x.loss:.4f}") for name, x in learnt.rows.items()]
    return [_measured_on(learner, learnt), "", *markdown_table(("network", "accuracy", "loss (nats)"), rows)]


def _measured_on(learner: Learner, learnt: Learnt) -> str:
    examples = next(iter(learnt.rows.values())).examples
    kind = "held-out" if learner.parts.held_out is not None else "training"
    return f"Measured on {examples:,} {kind} examples of {learnt.measured_on}."


def loss_figure(learnt: Learnt) -> Any:
    """Training loss of every step, held-out loss where it was judged."""
    figure, (axes,) = new_figure(1)
    history = learnt.result.history
    axes.plot(np.arange(1, len(history.loss) + 1), history.loss, color="tab:grey", linewidth=0.8, label="batch")
    if len(history.held_out_loss):
        axes.plot(history.held_out_step, history.held_out_loss, marker="o", color="tab:red", label="held out")
    axes.set(xlabel="step", ylabel="objective (nats)", title="Loss")
    axes.legend(frameon=False)
    return figure


def share_figure(shares: Shares, names: Sequence[str]) -> Any:
    """Mean coefficient by depth, a line for each model."""
    figure, (axes,) = new_figure(1)
    figure.set_figwidth(max(6.5, 3 + 0.18 * len(shares.names)))
    for name, column in zip(names, shares.values.T, strict=True):
        axes.plot(range(len(column)), column, marker=".", label=name)
    axes.axhline(1 / len(names), color="grey", linestyle=":", linewidth=0.8)
    axes.set_xticks(range(len(shares.names)), labels=shares.names, rotation=90, fontsize=6)
    axes.set(ylabel="mean coefficient", title="Share of each model by depth")
    axes.legend(frameon=False, fontsize="small")
    return figure


def coefficient_figure(coefficients: Mapping[str, np.ndarray], names: Sequence[str]) -> Any:
    """A histogram of all coefficients of each model, on one scale."""
    figure, (axes,) = new_figure(1)
    low = min(float(x.min()) for x in coefficients.values())
    high = max(float(x.max()) for x in coefficients.values())
    edges = np.linspace(low, high if high > low else low + 1e-3, 61)
    for k, name in enumerate(names):
        counts = sum(np.histogram(x[k], edges)[0] for x in coefficients.values())
        axes.stairs(counts, edges, label=name)
    axes.set(xlabel="coefficient", ylabel="how many", yscale="log", title="Coefficients")
    axes.legend(frameon=False, fontsize="small")
    return figure


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(x) if math.isfinite(x) else None for x in values.tolist()]
