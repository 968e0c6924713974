"""What a learned merge says: `report.md`, `history.json` and figures, the same bytes for the same merge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from npmerge.learning.figures import draw
from npmerge.learning.learner import Learner, Learnt
from npmerge.learning.measuring import Rows
from npmerge.learning.partly import PartlyLearned
from npmerge.learning.shares import Shares, shares_of
from npmerge.reports.tables import json_text, markdown_table

UNFIT = "The labels are not of what the networks predict, one for each prediction: no accuracy can be told."
FILES = ("report.md", "history.json", "loss.png", "shares.png", "coefficients.png")


def write_pages(folder: Path, learner: Learner, learnt: Learnt, names: Sequence[str]) -> None:
    """Write all files of a learned merge into a folder.

    Args:
        folder: made if it is not there.
        learner: what was asked for.
        learnt: what became of it.
        names: of the models, in the order of the coefficients.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shares = shares_of(learnt.coefficients)
    history = json_text(content(learner, learnt, shares, names))
    (folder / "history.json").write_text(history + "\n", encoding="utf-8")
    (folder / "report.md").write_text("\n".join(page(learner, learnt, shares, names)), encoding="utf-8")
    draw(folder, learnt, shares, names)


def content(learner: Learner, learnt: Learnt, shares: Shares, names: Sequence[str]) -> dict[str, Any]:
    """What `history.json` holds."""
    history = learnt.result.history
    return {
        "status": learnt.result.status,
        "loss": history.loss.tolist(),
        "held_out_step": history.held_out_step.tolist(),
        "held_out_loss": history.held_out_loss.tolist(),
        "evaluation": {
            "examples": learnt.measured.name,
            "held_out": learner.tasks.has_held_out,
            "networks": _rows(learnt.measured.rows),
            **({"tasks": {x: _rows(rows) for x, rows in tasks.items()}} if (tasks := learnt.measured.by_task) else {}),
        },
        "shares": {
            "models": list(names),
            "modules": {name: x.tolist() for name, x in zip(shares.names, shares.values, strict=True)},
        },
    }


def page(learner: Learner, learnt: Learnt, shares: Shares, names: Sequence[str]) -> list[str]:
    """Lines of `report.md`."""
    block, merge = learner.block, learner.learned
    lines = ["# A learned merge", "", *_table(learner, learnt), "", "## What was learned", ""]
    lines += [
        f"From {learner.recipe.merge_method} on: {merge.granularity}, {merge.constraint}, {block.minimised}. "
        f"{block.steps} steps of {block.batch_size} of {_examples(learner)}, seed {block.seed}; {_ended(learnt)}",
        "",
        *_fixed(learner),
        *(f"Warning: {x}.\n" for x in learnt.warnings),
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
    rows = [f"{name}: accuracy {x.accuracy:.4f}, loss {x.loss:.4f}" for name, x in learnt.measured.rows.items()]
    measured = [_measured_on(learner, learnt)] if rows else []
    return [f"learned: {_ended(learnt)}", *rows, *measured, *(f"warning: {x}" for x in learnt.warnings)]


def _ended(learnt: Learnt) -> str:
    history, status = learnt.result.history, learnt.result.status
    said = f"{status} after {len(history.loss)} steps"
    if status == "diverged":
        said = f"diverged: the loss of step {len(history.loss)} or its gradient is not finite, and the last good theta is kept"
    if status == "diverged" and not len(history.held_out_loss):
        return f"{said}."
    if not len(history.held_out_loss):
        if len(history.loss) > 1:
            said += f"; loss of the batch {history.loss[0]:.4g} in the first step, {history.loss[-1]:.4g} in the last"
        return f"{said}; without held-out examples the last theta is kept, not the best."
    best = int(np.nanargmin(history.held_out_loss)) if np.isfinite(history.held_out_loss).any() else 0
    first, lowest = history.held_out_loss[0], history.held_out_loss[best]
    return (
        f"{said}; held-out loss {first:.4f} at the start, {lowest:.4f} at its best, after step {history.held_out_step[best]}."
    )


def _examples(learner: Learner) -> str:
    found = [f"the {len(x.inputs):,} examples of {x.name}" for x in learner.tasks.train]
    return found[0] if len(found) == 1 else f"each of {', '.join(found)}"


def _fixed(learner: Learner) -> list[str]:
    """What has no coefficients that are learned, if anything."""
    if not isinstance(merge := learner.merge, PartlyLearned):
        return []
    total = len(jax.tree.leaves(learner.stack.params))
    return [f"Learned: {len(merge.paths)} of {total} tensors; the others are merged by {learner.recipe.merge_method}.", ""]


def _rows(rows: Rows) -> dict[str, Any]:
    return {name: row._asdict() for name, row in rows.items()}


def _table(learner: Learner, learnt: Learnt) -> list[str]:
    found = learnt.measured
    if not found.rows:
        labelled = any(x.targets is not None for x in learner.tasks.train)
        return [UNFIT if labelled else "The examples have no labels: no accuracy can be told."]
    lines = [_measured_on(learner, learnt), "", *_accuracies(found.rows)]
    for task, rows in found.by_task.items():
        lines += ["", f"On {task}:", "", *_accuracies(rows)]
    return lines


def _accuracies(rows: Rows) -> list[str]:
    table = [(name, f"{x.accuracy:.4f}", f"{x.loss:.4f}") for name, x in rows.items()]
    return markdown_table(("network", "accuracy", "loss (nats)"), table)


def _measured_on(learner: Learner, learnt: Learnt) -> str:
    examples = next(iter(learnt.measured.rows.values())).examples
    kind = "held-out" if learner.tasks.has_held_out else "training"
    return f"Measured on {examples:,} {kind} examples of {learnt.measured.name}."
