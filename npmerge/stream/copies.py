"""Copies compared with what they were copied from, once everything is written."""

from collections import Counter

import numpy as np

from npmerge.checkpoint.stored import StoredModel
from npmerge.recipe.plan import Plan, Step
from npmerge.reports.numbers import plural
from npmerge.stream import blocks


def compared(plan: Plan, merged: StoredModel) -> list[str]:
    """What can be said of the tensors that a plan copies, a line for each model that they are of; none without copies.

    Raises:
        ValueError: a copy that is not, bit for bit, what it was copied from.
    """
    found: Counter[str] = Counter()
    for step in plan.steps:
        if step.action == "copy" and not _is_converted(plan, step):
            _check(plan, step, merged)
            found[plan.models[step.sources[0].model].name] += 1
    return [
        f"{plural(k, 'tensor')} copied from {name}; read again, the copies have the same bytes" for name, k in found.items()
    ]


def _is_converted(plan: Plan, step: Step) -> bool:
    (source,) = step.sources
    return source.rows is not None or plan.models[source.model].entries[source.name].dtype != step.dtype


def _check(plan: Plan, step: Step, merged: StoredModel) -> None:
    (source,) = step.sources
    model, size = plan.models[source.model], merged.entries[step.name].size
    for start in range(0, size, blocks.BLOCK):
        count = min(blocks.BLOCK, size - start)
        ours, theirs = merged.read(step.name, start, count), model.read(source.name, start, count)
        if not np.array_equal(ours.view(np.uint8), theirs.view(np.uint8)):
            raise ValueError(f"{step.name} is not what was copied from {source.name} of {model.name}: is the disk damaged?")
