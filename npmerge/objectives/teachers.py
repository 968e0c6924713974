"""Which of the merged models an objective learns from."""

from typing import Any, Literal

import numpy as np

from alignment.graph import PyTree
from npmerge.stack import Stack, check_stack

Teacher = int | Literal["mean", "own"]
"""The number of a model, the mean of what all of them make, or on the data of each task the model of that task."""


def check_teacher(name: str, teacher: Any) -> None:
    """Raise ValueError unless `teacher` is a `Teacher`; `name` is who asks."""
    number = isinstance(teacher, int | np.integer) and not isinstance(teacher, bool) and teacher >= 0
    if not number and teacher not in ("mean", "own"):
        raise ValueError(f"the teacher of {name} must be 'mean', 'own' or the number of a model, got {teacher!r}")


def teachers(name: str, teacher: Teacher, stack: Stack | None) -> list[PyTree]:
    """The models to learn from. Raises ValueError without a stack, without such a model, or for a task's own without tasks."""
    if stack is None:
        raise ValueError(f"{name} needs the models to distil from: got no stack")
    if teacher == "own":
        raise ValueError(f"teacher='own' is the model of each task: give batches of every task to Joint({name}(...))")
    models = check_stack(stack).models()
    if teacher == "mean":
        return models
    if teacher >= len(models):
        raise ValueError(f"{name} is to learn from model {teacher}: the stack has the models 0 to {len(models) - 1}")
    return [models[teacher]]
