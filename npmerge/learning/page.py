"""What a learned merge says: `report.md`, `history.json` and figures, the same bytes for the same merge."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from npmerge.learning.figures import draw
from npmerge.learning.learner import Learner, Learnt
from npmerge.learning.measuring import Rows
from npmerge.learning.partly import PartlyLearned
from npmerge.learning.shares import Shares, names_of, shares_of
from npmerge.reports.numbers import nats, plural
from npmerge.reports.tables import json_text, markdown_table

UNFIT = "The labels are not of what the networks predict, one for each prediction: no accuracy can be told."
FILES = ("report.md", "history.json", "loss.png", "shares.png", "coefficients.png")


def write_pages(
    folder: Path, learner: Learner, learnt: Learnt, names: Sequence[str], paths: Mapping[str, Sequence[str]]
) -> None:
    """Write all files of a learned merge into a folder.

    Args:
        folder: made if it is not there.
        learner: what was asked for.
        learnt: what became of it.
        names: of the models, in the order of the coefficients.
        paths: of each tensor by its name in the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shares = shares_of(learnt.coefficients)
    history = json_text(content(learner, learnt, shares, names))
    (folder / "history.json").write_text(history + "\n", encoding="utf-8")
    (folder / "report.md").write_text("\n".join(page(learner, learnt, shares, names, paths)), encoding="utf-8")
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
            **({"objective": dict(judged)} if (judged := learnt.measured.judged) else {}),
            **({"tasks": {x: _rows(rows) for x, rows in tasks.items()}} if (tasks := learnt.measured.by_task) else {}),
        },
        "shares": {
            "models": list(names),
            "modules": {name: x.tolist() for name, x in zip(shares.names, shares.values, strict=True)},
        },
    }


def page(
    learner: Learner, learnt: Learnt, shares: Shares, names: Sequence[str], paths: Mapping[str, Sequence[str]]
) -> list[str]:
    """Lines of `report.md`."""
    block = learner.block
    lines = ["# A learned merge", "", *_table(learner, learnt), "", "## What was learned", ""]
    lines += [
        f"From {learner.recipe.merge_method} on: {block.granularity.name}, {block.constraint.name}, {block.minimised}. "
        f"{plural(block.steps, 'step')} of {block.batch_size} of {_examples(learner)}, seed {block.seed}; {_ended(learnt)}",
        "",
        *_fixed(learner),
        *(f"Warning: {x}.\n" for x in (*learnt.warnings, *learner.tasks.repeated(block.batch_size))),
        "![loss](loss.png)",
        "",
        "![shares](shares.png)",
        "",
        "![coefficients](coefficients.png)",
        "",
        "Mean coefficient of each model, from the inputs to the outputs:",
        "",
    ]
    theirs = names_of(paths, learner.learned.granularity.group)
    called = [(theirs.get(name, ""),) if theirs else () for name in shares.names]
    values = [[f"{v:.4f}" for v in row] for row in shares.values.tolist()]
    rows = [(name, *own, *row) for name, own, row in zip(shares.names, called, values, strict=True)]
    head = ("module", *(("in the files",) if theirs else ()), *names)
    return [*lines, *markdown_table(head, rows), ""]


def told(learner: Learner, learnt: Learnt) -> list[str]:
    """What the terminal shows."""
    rows = [f"{name}: accuracy {x.accuracy:.4f}, loss {nats(x.loss)}" for name, x in learnt.measured.rows.items()]
    measured = [_measured_on(learner, learnt), *_better(learnt.measured.rows)] if rows else []
    if judged := learnt.measured.judged:
        rows = [f"{name}: objective {nats(value)}" for name, value in judged.items()]
        measured = ["Measured on what is held out.", *_lower(judged)]
    return [f"learned: {_ended(learnt)}", *rows, *measured, *(f"warning: {x}" for x in learnt.warnings)]


def _ended(learnt: Learnt) -> str:
    history, status = learnt.result.history, learnt.result.status
    said = f"{status} after {plural(len(history.loss), 'step')}"
    if not len(history.loss):
        return "no steps were taken: the result is the start."
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
    if not best:
        return f"{said}; held-out loss {nats(first)} at the start, and never below it: the result is the start."
    return (
        f"{said}; held-out loss {nats(first)} at the start, {nats(lowest)} at its best, "
        f"after step {history.held_out_step[best]}."
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
        return [UNFIT if labelled else "The examples have no labels: no accuracy can be told.", *_objectives(learnt)]
    lines = [_measured_on(learner, learnt), *_statistics(learner), "", *_accuracies(found.rows)]
    if better := _better(found.rows):
        lines += ["", *better]
    for task, rows in found.by_task.items():
        lines += ["", f"On {task}:", "", *_accuracies(rows)]
    return lines


def _objectives(learnt: Learnt) -> list[str]:
    """What is minimised, of each network on what is held out, and which of them the result does not reach."""
    judged = learnt.measured.judged
    if not judged:
        return []
    table = markdown_table(("network", "objective"), [(name, nats(value)) for name, value in judged.items()])
    return ["", "On what is held out:", "", *table, *(["", *lower] if (lower := _lower(judged)) else [])]


def _lower(judged: Mapping[str, float]) -> list[str]:
    lower = [name for name, value in judged.items() if value < judged["learned"]]
    return [f"Lower than what was learned: {', '.join(lower)}."] if lower else []


def _accuracies(rows: Rows) -> list[str]:
    table = [(name, f"{x.accuracy:.4f}", nats(x.loss)) for name, x in rows.items()]
    return markdown_table(("network", "accuracy", "loss (nats)"), table)


def _statistics(learner: Learner) -> list[str]:
    """Why losses of one network are not the same, where there is BatchNorm."""
    if learner.network.train_apply is None:
        return []
    return [
        "Running statistics of start and result are estimated from what was learned from; held-out losses during the fit, in "
        "loss.png and below, are on the statistics of each batch."
    ]


def _better(rows: Rows) -> list[str]:
    """What the result does not reach, if anything."""
    better = [name for name, x in rows.items() if x.accuracy > rows["learned"].accuracy]
    return [f"More accurate than what was learned: {', '.join(better)}."] if better else []


def _measured_on(learner: Learner, learnt: Learnt) -> str:
    examples = next(iter(learnt.measured.rows.values())).examples
    kind = "held-out" if learner.tasks.has_held_out else "training"
    return f"Measured on {examples:,} {kind} examples of {learnt.measured.name}."
