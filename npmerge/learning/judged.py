"""Whether what a network gives is what the terms of a `learn:` block judge: told before anything runs."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from alignment.graph import PyTree
from npmerge.learning.architectures import Architecture
from npmerge.learning.data import Examples
from npmerge.models import Config
from npmerge.objectives import Objective
from npmerge.recipe.terms import Term
from npmerge.stack import Stack

LOGITS = ("cross_entropy", "next_token", "distillation", "entropy")
"""Terms that take the outputs for scores of classes or tokens."""

REMEDY = "give an architecture with a head, feature_matching, or an objective of your own as module:function"


class Judged(NamedTuple):
    """What is judged: of `network`, which messages call `name`, the variables of one model and those of all."""

    network: Architecture
    name: str
    model: PyTree
    stack: Stack


def check_judged(judged: Judged, objective: Objective, terms: Sequence[Term], examples: Examples) -> None:
    """Check that the objective of a task can judge the network on its examples. Shapes only, nothing runs.

    Args:
        judged: the network with the models.
        objective: of the task.
        terms: that it is the sum of.
        examples: of the task.

    Raises:
        ValueError: features where scores are asked for, labels that do not fit; what the network gives and what would help.
    """
    forward = judged.network.forward
    shape = _shape(jax.eval_shape(forward, judged.model, examples.inputs))
    if (reads := [term.name for term in terms if term.name in LOGITS]) and is_headless(judged.network.config):
        labels = "" if examples.targets is None else f", labels are {_shape(examples.targets)}"
        what = f"{judged.name} gives features {shape} of no classes or tokens{labels}"
        raise ValueError(f"{reads[0]} judges scores, and {what}: {REMEDY}")
    batch = (examples.inputs, examples.filled)
    try:
        objective.checker(forward, judged.model, judged.stack, batch)(batch)
    except ValueError as error:
        raise ValueError(f"{error}; {judged.name} gives {shape} for {examples.name}") from None


def is_headless(config: Config | None) -> bool:
    """Whether a network gives features, as encoders without a classifier do."""
    return getattr(config, "classes", 0) is None


def _shape(outputs: PyTree) -> str:
    return ", ".join(str(tuple(x.shape)) for x in jax.tree.leaves(outputs))
