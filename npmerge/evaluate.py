"""How good a network is: accuracy, loss, logit ensembles, and the barrier along a path between two networks."""

import functools
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from alignment.checks import check_count, check_list
from alignment.graph import STATISTICS, PyTree, flatten, weights_of
from npmerge.base import between
from npmerge.batches import measured
from npmerge.normalisation import TrainApply, reset_statistics
from npmerge.objectives import Apply, check_labels
from npmerge.operations import tell_of
from npmerge.stack import stack_models


class Metrics(NamedTuple):
    """Fraction classified correctly, mean cross entropy in nats, number of examples (of tokens, where those have labels)."""

    accuracy: float
    loss: float
    examples: int


def evaluate(apply: Apply, variables: PyTree, batches: Iterable[tuple]) -> Metrics:
    """Accuracy and cross entropy over all batches `(inputs, labels)`, each example counted once.

    Raises:
        ValueError: no batches, or labels out of range.

    Warns:
        UserWarning: inputs that are images of bytes, which few networks take as they are.
    """
    sums, outputs = np.zeros(3), None
    for inputs, labels in measured(batches):
        if outputs is None:
            outputs = jax.eval_shape(apply, variables, inputs)
            _warn_of_pixels(inputs)
        check_labels(labels, outputs)
        if len(labels) != len(inputs):
            raise ValueError(f"a batch has {len(inputs)} inputs and {len(labels)} labels")
        tell_of(_sums, apply, variables, inputs, np.asarray(labels))
        sums += np.array([*map(float, _sums(apply, variables, inputs, np.asarray(labels))), np.size(labels)])
    if not sums[2]:
        raise ValueError("evaluate needs data: got no batches")
    return Metrics(float(sums[0] / sums[2]), float(sums[1] / sums[2]), int(sums[2]))


def _warn_of_pixels(inputs: Any) -> None:
    if getattr(inputs, "dtype", None) == np.uint8 and np.ndim(inputs) > 2:
        warnings.warn(
            "inputs are uint8, numbers from 0 to 255: unless the network takes them so, divide by 255 and normalise as in "
            "its training",
            stacklevel=3,
        )


@functools.partial(jax.jit, static_argnums=0)
def _sums(apply: Apply, variables: PyTree, inputs: Array, labels: Int[Array, "n ..."]) -> tuple[Array, Array]:
    logits = apply(variables, inputs).astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()
    return (logits.argmax(-1) == labels).sum(), loss


@dataclass(frozen=True)
class LogitEnsemble:
    """The mean of the logits of several networks, as one function of the list of their variables: N times the cost."""

    apply: Apply

    def __call__(self, models: Sequence[PyTree], inputs: Array) -> Float[Array, "n classes"]:
        """Logits of the ensemble."""
        logits = [self.apply(model, inputs) for model in models]
        return sum(logits[1:], logits[0]) / len(logits)


def flops(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> float:
    """Floating-point operations of one call, as XLA compiles it: what several heads compute alike counts once.

    Args:
        apply: any function.
        variables: arrays or `jax.ShapeDtypeStruct`.
        inputs: a batch, of arrays or shapes; the operations are those of the whole batch.
    """
    analysis: Any = jax.jit(apply).lower(variables, *inputs).compile().cost_analysis()
    return float(analysis["flops"])


def parameters(variables: PyTree) -> int:
    """The number of parameters: elements of floating-point leaves, without running statistics."""
    return sum(int(np.size(x)) for x in weights_of(variables).values())


class Path(NamedTuple):
    """Loss and accuracy at each fraction of the way from the first network to the second, as numpy arrays."""

    fractions: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray

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
    """How much worse a path is than the line between its ends, in loss and in accuracy, with the path itself."""

    loss: float
    accuracy: float
    path: Path


def path_between(
    apply: Apply,
    start: PyTree,
    end: PyTree,
    batches: Sequence[tuple],
    *,
    points: int = 11,
    reset: Callable[[PyTree], PyTree] | None = None,
) -> Path:
    """Evaluate the networks on the straight line between two, ends included. Integer leaves come from the first network.

    Args:
        apply: the network in evaluation mode.
        start: variables at fraction 0.
        end: variables at fraction 1.
        batches: `(inputs, labels)`.
        points: how many networks to evaluate.
        reset: applied to the variables at every point; `resetting(train_apply, batches)` for networks with BatchNorm.

    Raises:
        ValueError: for batches that are not a list, fewer than two points, a `reset` that takes other arguments, and what
            `evaluate` refuses.
    """
    check_count("points", points, 2)
    check_list(batches, "batches")
    _check_reset(reset)
    stack_models([_floating(start), _floating(end)])  # checks them
    start, end = (jax.tree.map(jnp.asarray, model) for model in (start, end))
    fractions = np.linspace(0, 1, points)
    measured = []
    for t in fractions:
        variables = _between(start, end, jnp.float32(t))
        measured.append(evaluate(apply, variables if reset is None else reset(variables), batches))
    return Path(fractions, np.array([m.loss for m in measured]), np.array([m.accuracy for m in measured]))


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
    reset: Callable[[PyTree], PyTree] | None = None,
) -> Barrier:
    """The barrier between two networks in loss and in accuracy, from `path_between`, which takes the same arguments.

    Networks with BatchNorm need `reset=resetting(train_apply, batches)`, with training data: the statistics of a network
    between two others do not lie between theirs.

    Warns:
        UserWarning: if the networks hold running statistics and there is no `reset`.
    """
    if reset is None and (held := [path for path in flatten(start) if re.search(STATISTICS, path)]):
        warnings.warn(
            f"running statistics such as {held[0]!r} are interpolated, which makes a barrier of its own: "
            "pass reset=resetting(train_apply, batches)",
            stacklevel=2,
        )
    path = path_between(apply, start, end, batches, points=points, reset=reset)
    return Barrier(path.barrier, path.accuracy_barrier, path)


def _check_reset(reset: Callable[[PyTree], PyTree] | None) -> None:
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


def resetting(train_apply: TrainApply, batches: Sequence[tuple]) -> Callable[[PyTree], PyTree]:
    """`reset_statistics` on these batches, a list, as a function of the variables alone."""
    check_list(batches, "batches")
    return functools.partial(reset_statistics, train_apply, batches=batches)


_between = jax.jit(between)
