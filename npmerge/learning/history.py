"""What `history.json` keeps of a learned merge: everything that its page says, and that cannot be computed again."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from npmerge.learning.learner import Learner, Learnt
from npmerge.learning.measuring import Rows
from npmerge.learning.partly import PartlyLearned
from npmerge.learning.shares import names_of, shares_of

FEWEST, MOST = 8, 60
"""Bins of the histogram of coefficients."""


def history_of(learner: Learner, learnt: Learnt, names: Sequence[str], paths: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The content of `history.json`.

    Args:
        learner: what was asked for.
        learnt: what became of it.
        names: of the models, in the order of the coefficients.
        paths: of each tensor by its name in the files.
    """
    history, measured = learnt.result.history, learnt.measured
    return {
        "status": learnt.result.status,
        "loss": history.loss.tolist(),
        "held_out_step": history.held_out_step.tolist(),
        "held_out_loss": history.held_out_loss.tolist(),
        "evaluation": {
            "examples": measured.name,
            "count": sum(len(learner.tasks.measured[name].inputs) for name in measured.by_task or learner.tasks.measured),
            "held_out": learner.tasks.has_held_out,
            "networks": _rows(measured.rows),
            **({"objective": dict(judged)} if (judged := measured.judged) else {}),
            **({"tasks": {x: _rows(rows) for x, rows in tasks.items()}} if (tasks := measured.by_task) else {}),
            "labelled": any(x.targets is not None for x in learner.tasks.train),
            "sequences": any(np.ndim(x.filled) > 1 for x in learner.tasks.train),
        },
        "shares": _shares(learner, learnt, names, paths),
        "coefficients": _histogram(learnt.coefficients),
        "asked": _asked(learner),
        "warnings": list(learnt.warnings),
        "repeated": list(learner.tasks.repeated(learner.block.batch_size)),
    }


def _asked(learner: Learner) -> dict[str, Any]:
    block, merge = learner.block, learner.merge
    chosen = None
    if isinstance(merge, PartlyLearned):
        chosen = {"learned": len(merge.paths), "all": len(jax.tree.leaves(learner.stack.params))}
    return {
        "method": learner.recipe.merge_method,
        "granularity": block.granularity.name,
        "constraint": block.constraint.name,
        "objective": block.minimised,
        "steps": block.steps,
        "batch_size": block.batch_size,
        "seed": block.seed,
        "examples": [[x.name, len(x.inputs)] for x in learner.tasks.train],
        "tensors": chosen,
        "batch_statistics": learner.network.train_apply is not None,
    }


def _shares(learner: Learner, learnt: Learnt, names: Sequence[str], paths: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    shares, theirs = shares_of(learnt.coefficients), names_of(paths, learner.learned.granularity.group)
    modules = {name: x.tolist() for name, x in zip(shares.names, shares.values, strict=True)}
    return {"models": list(names), "modules": modules, "in_files": {x: theirs[x] for x in shares.names if x in theirs}}


def _histogram(coefficients: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How many coefficients of each model lie between two edges, on one scale for all."""
    low = min(float(x.min()) for x in coefficients.values())
    high = max(float(x.max()) for x in coefficients.values())
    models = len(next(iter(coefficients.values())))
    each = sum(x.size for x in coefficients.values()) // models
    bins = min(max(2 * math.isqrt(each), FEWEST), MOST)  # of few coefficients, or most bins hold one or none
    edges = np.linspace(low, high if high > low else low + 1e-3, bins + 1)
    counts = [sum(np.histogram(x[k], edges)[0] for x in coefficients.values()) for k in range(models)]
    return {"edges": edges.tolist(), "counts": [np.asarray(x).tolist() for x in counts]}


def _rows(rows: Rows) -> dict[str, Any]:
    return {name: row._asdict() for name, row in rows.items()}
