"""The straight path between two networks, and the barrier along it."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignment.checks import check_count, check_list, kind_of
from alignment.graph import PyTree, flatten
from alignment.names import is_statistic
from npmerge.arithmetic import between
from npmerge.evaluate import evaluate, named_fields
from npmerge.normalisation import TrainApply, reset_statistics, warn_of_statistics
from npmerge.objectives import Apply, Objective
from npmerge.objectives.of_user import check_variables
from npmerge.stack import stack_models

Reset = Callable[[PyTree], PyTree]
"""What is done to the variables of a network between two others before it is measured."""


class Path(NamedTuple):
    """What `path_between` returns, as numpy arrays (points,).

    Attributes:
        fractions: of the way from the first network to the second.
        loss: at each, in nats, or of the objective.
        accuracy: at each, as a fraction; NaN where the targets are no labels of classes.

    Example:
        >>> path = nm.Path(np.array([0.0, 0.5, 1.0]), np.array([0.2, 0.9, 0.4]), np.array([0.9, 0.6, 0.8]))
        >>> path
        Path(3 points, loss 0.2 -> 0.4, at most 0.9)
        >>> round(path.barrier, 2), round(path.accuracy_barrier, 2)  # above 0.3, below 0.85
        (0.6, 0.25)
    """

    fractions: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray

    def __repr__(self) -> str:
        """The ends and the worst point in a line: all of them would fill several."""
        return f"Path({len(self.loss)} points, loss {self.loss[0]:.3g} -> {self.loss[-1]:.3g}, at most {self.loss.max():.3g})"

    @property
    def barrier(self) -> float:
        """Max over the path of the loss above the line between its ends, in nats.

        That is the barrier of Entezari et al. 2022 ("The Role of Permutation Invariance in Linear Mode Connectivity of Neural
        Networks"); Frankle et al. 2020 ("Linear Mode Connectivity and the Lottery Ticket Hypothesis") take the loss above the
        mean of the ends.
        """
        line = (1 - self.fractions) * self.loss[0] + self.fractions * self.loss[-1]
        return float((self.loss - line).max())

    @property
    def accuracy_barrier(self) -> float:
        """Max over the path of the accuracy below the line between its ends, as a fraction of all examples."""
        line = (1 - self.fractions) * self.accuracy[0] + self.fractions * self.accuracy[-1]
        return float((line - self.accuracy).max())


class Barrier(NamedTuple):
    """How much worse a path is than the line between its ends.

    Attributes:
        loss: the most that the loss is above that line, in nats, or of the objective.
        accuracy: the most that the accuracy is below its own; NaN where the targets are no labels of classes.
        path: that was measured.

    Example:
        >>> apply = lambda v, x: x @ v  # linear: the line is as good as its ends
        >>> found = nm.barrier(apply, jnp.eye(2), 3 * jnp.eye(2), [(jnp.eye(2), np.array([0, 1]))], points=3)
        >>> found.loss, found.accuracy, found.path.fractions.tolist()
        (0.0, 0.0, [0.0, 0.5, 1.0])
    """

    loss: float
    accuracy: float
    path: Path

    def __repr__(self) -> str:
        """The fields, without an accuracy where there is none."""
        return named_fields(self)


def path_between(
    apply: Apply,
    start: PyTree,
    end: PyTree,
    batches: Sequence[tuple],
    *,
    points: int = 11,
    reset: Reset | None = None,
    objective: Objective | None = None,
) -> Path:
    """Evaluate the networks on the straight line between two, ends included. Integer leaves come from the first network.

    Args:
        apply: the network in evaluation mode.
        start: variables at fraction 0.
        end: variables at fraction 1.
        batches: `(inputs, labels)`, or what the objective takes.
        points: how many networks to evaluate.
        reset: applied to the variables at every point; `resetting(train_apply, batches)` for networks with BatchNorm.
        objective: what takes the place of cross entropy (`evaluate`).

    Raises:
        ValueError: for arguments in another order, batches that are not a list, fewer than two points, a `reset` that takes
            other arguments, and what `evaluate` refuses.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> a = {"w": jnp.eye(2), "u": 4 * jnp.eye(2)}
        >>> b = {"w": a["w"][:, ::-1], "u": a["u"][::-1]}  # its units in another order: the same function
        >>> print(nm.path_between(apply, a, b, [(jnp.eye(2), np.array([0, 1]))], points=3).loss.round(2))
        [0.02 0.69 0.02]
    """
    if not callable(apply) or isinstance(batches, Mapping):
        got = ", ".join(map(kind_of, (apply, start, end, batches)))
        raise ValueError(f"path_between and barrier take (apply, start, end, batches), got ({got})")
    for model in (start, end):
        check_variables("path_between and barrier take", model)
    check_count("points", points, 2)
    check_list(batches, "batches")
    _check_reset(reset)
    stack_models([_floating(start), _floating(end)])  # checks them
    start, end = (jax.tree.map(jnp.asarray, model) for model in (start, end))
    fractions = np.linspace(0, 1, points)
    found = []
    for t in fractions:
        variables = _between(start, end, jnp.float32(t))
        variables = variables if reset is None else reset(variables)
        found.append(evaluate(apply, variables, batches, objective=objective))
    return Path(fractions, np.array([m.loss for m in found]), np.array([m.accuracy for m in found]))


def _floating(model: PyTree) -> PyTree:
    """Zeros in the place of leaves that no path leads between."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(jnp.result_type(x), jnp.floating) else jnp.zeros(jnp.shape(x)), model)


def barrier(
    apply: Apply,
    start: PyTree,
    end: PyTree,
    batches: Sequence[tuple],
    *,
    points: int = 11,
    reset: Reset | None = None,
    objective: Objective | None = None,
) -> Barrier:
    """The barrier between two networks in loss and in accuracy, from `path_between`, which takes the same arguments.

    Networks with BatchNorm need `reset=resetting(train_apply, batches)`, with training data: the statistics of a network
    between two others do not lie between theirs.

    Warns:
        UserWarning: if the networks hold running statistics and there is no `reset`.

    Example:
        >>> apply, batches = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"], [(jnp.eye(2), np.array([0, 1]))]
        >>> a = {"w": jnp.eye(2), "u": 4 * jnp.eye(2)}
        >>> b = {"w": a["w"][:, ::-1], "u": a["u"][::-1]}
        >>> graph = nm.trace(apply, a, batches[0][0])
        >>> aligned = nm.align(alignment.WeightMatching(), graph, [a, b])
        >>> [round(nm.barrier(apply, *pair, batches, points=3).loss, 2) for pair in [(a, b), aligned]]
        [0.67, 0.0]
    """
    if reset is None and (held := [path for path in flatten(start) if is_statistic(path)]):
        warn_of_statistics(
            held, "pass reset=resetting(train_apply, batches), or they make a barrier of their own", stacklevel=2
        )
    path = path_between(apply, start, end, batches, points=points, reset=reset, objective=objective)
    return Barrier(path.barrier, path.accuracy_barrier, path)


def _check_reset(reset: Reset | None) -> None:
    """Raise ValueError unless it is None or can be called with the variables alone."""
    if reset is None:
        return
    try:
        inspect.signature(reset).bind(None)
    except TypeError:
        expected = "a function of the variables alone, such as resetting(train_apply, batches)"
        raise ValueError(f"reset must be {expected}: got one of other arguments") from None
    except ValueError:  # some functions do not tell
        pass


def resetting(train_apply: TrainApply, batches: Sequence[tuple]) -> Reset:
    """`reset_statistics` on these batches as a function of the variables alone, for `path_between` and `barrier`.

    Args:
        train_apply: the network in training mode.
        batches: `(inputs, targets)`, a list: they are gone through at every point.

    Raises:
        ValueError: batches that are no list.

    Example:
        >>> def train_apply(v, x):  # a norm whose statistics move by half
        ...     mean = 0.5 * v["batch_stats"]["mean"] + 0.5 * x.mean(0)
        ...     return x - x.mean(0, keepdims=True), {"batch_stats": {"mean": mean}}
        >>> reset = nm.resetting(train_apply, [(jnp.array([[1.0, 2.0], [3.0, 6.0]]), None)])
        >>> [f"{x:.2f}" for x in reset({"batch_stats": {"mean": jnp.zeros(2)}})["batch_stats"]["mean"]]
        ['2.00', '4.00']
    """
    check_list(batches, "batches")
    return functools.partial(reset_statistics, train_apply, batches=batches)


_between = jax.jit(between)
