"""How good the networks of a learned merge are: on all examples, and on those of each task."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np

from alignment.graph import PyTree
from npmerge.evaluate import Metrics, evaluate
from npmerge.learning.data import Examples
from npmerge.objectives import check_labels

Rows = dict[str, Metrics]


class Measured(NamedTuple):
    """Accuracy and loss of networks by their names.

    Attributes:
        rows: over all examples that have labels of what the networks predict; empty where none have.
        by_task: of each task, by its name; empty where there is one.
        name: what the examples are called.
        judged: the objective of each network on what is held out, where no accuracy can be told.
    """

    rows: Rows
    by_task: dict[str, Rows]
    name: str
    judged: Mapping[str, float] = MappingProxyType({})


def measured(
    apply: Callable, networks: Iterable[tuple[str, PyTree]], tasks: Mapping[str, Examples], batch_size: int
) -> Measured:
    """The networks on the examples of each task that has labels of what they predict.

    Args:
        apply: the network in evaluation mode.
        networks: names and variables, which are asked for one after the other.
        tasks: examples by name.
        batch_size: examples at a time.
    """
    found: dict[str, Rows] = {}
    for name, variables in networks:
        for task, examples in tasks.items():
            if has_labels(apply, variables, examples):
                found.setdefault(task, {})[name] = evaluate(apply, variables, examples.batches(batch_size))
        del variables  # before the next is there
        if not found:
            break
    names = next(iter(found.values()), {})
    rows = {name: _pooled([x[name] for x in found.values()]) for name in names}
    return Measured(rows, found if len(tasks) > 1 else {}, ", ".join(found or tasks))


def _pooled(rows: Sequence[Metrics]) -> Metrics:
    """Each example counted once."""
    if len(rows) == 1:
        return rows[0]
    counts = [x.examples for x in rows]
    accuracy, loss = (float(np.average(x, weights=counts)) for x in ([r.accuracy for r in rows], [r.loss for r in rows]))
    return Metrics(accuracy, loss, sum(counts))


def has_labels(apply: Callable, variables: PyTree, examples: Examples) -> bool:
    """Whether the examples have labels, and those are of what the network predicts."""
    if examples.targets is None:
        return False
    try:
        check_labels(examples.targets, jax.eval_shape(apply, variables, examples.inputs[:1]))
    except ValueError:
        return False
    return True
