"""How good a network is, and how large: accuracy and loss, of ensembles too; operations and parameters."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from alignment.checks import check_kinds
from alignment.graph import PyTree, weights_of
from npmerge.arithmetic import mean
from npmerge.batches import measured, warn_of_pixels
from npmerge.masks import kept
from npmerge.objectives import Apply, Objective, check_labels
from npmerge.objectives.base import Term, mean_over_batches, terms_of
from npmerge.objectives.labels import check_label_shapes
from npmerge.objectives.losses import of_function
from npmerge.objectives.of_user import check_variables, outputs_of
from npmerge.telling import tell_of


class Metrics(NamedTuple):
    """What `evaluate` returns.

    Attributes:
        accuracy: the fraction classified correctly; NaN where an objective was given and the targets are no labels of classes.
        loss: the mean cross entropy, in nats, or that of the objective.
        examples: how many there were; how many tokens, where those have labels.

    Example:
        >>> found = nm.evaluate(lambda v, x: x @ v, jnp.eye(2), [(jnp.eye(2), np.array([0, 1]))])
        >>> f"{found.accuracy:.0%} of {found.examples}, loss {found.loss:.2f}"
        '100% of 2, loss 0.31'
    """

    accuracy: float
    loss: float
    examples: int

    def __repr__(self) -> str:
        """The fields, without an accuracy where there is none."""
        return named_fields(self)


def named_fields(found: Any) -> str:
    """A named tuple in a line, without an accuracy that is not known."""
    known = {name: x for name, x in found._asdict().items() if name != "accuracy" or not math.isnan(x)}
    return f"{type(found).__name__}({', '.join(f'{name}={x!r}' for name, x in known.items())})"


def evaluate(apply: Apply, variables: PyTree, batches: Iterable[tuple], *, objective: Objective | None = None) -> Metrics:
    """Accuracy and cross entropy, or another objective, over all batches, each example counted once.

    Args:
        apply: `apply(variables, inputs) -> logits` (examples, ..., classes), evaluation mode.
        variables: of the network.
        batches: `(inputs, labels)`, labels integers (examples, ...) below the number of classes.
        objective: what takes the place of cross entropy, such as `PerExample(function)`. Batches are then those that it takes,
            and outputs and targets may be any.

    Raises:
        ValueError: no batches, labels out of range, arguments in another order, the result of `fit`, `repair` or
            `stack_models` in the place of variables, inputs on which the network raises, or what the
            objective cannot judge.

    Warns:
        UserWarning: inputs that are images of bytes, which few networks take as they are.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> variables, batches = {"w": jnp.eye(2), "u": 2 * jnp.eye(2)}, [(jnp.eye(2), np.array([0, 0]))]
        >>> found = nm.evaluate(apply, variables, batches)
        >>> found.accuracy, round(found.loss, 2)
        (0.5, 1.13)
        >>> squares = nm.PerExample(lambda outputs, targets: jnp.square(outputs - targets))
        >>> nm.evaluate(apply, variables, [(jnp.eye(2), jnp.eye(2))], objective=squares).loss
        0.5
    """
    call = "evaluate takes (apply, variables, batches)"
    check_kinds(call, (apply, Callable), (variables, object), (batches, Iterable))
    check_variables("evaluate takes", variables)
    if objective is not None:
        check_kinds(f"evaluate takes an Objective as objective{of_function(objective)}", (objective, Objective))
        return _judged(objective, apply, variables, batches)
    sums, outputs = np.zeros(3), None
    for inputs, labels in measured(batches):
        if outputs is None:
            outputs = outputs_of(apply, variables, inputs)
            warn_of_pixels(inputs, stacklevel=2)
            _check_classified(labels, outputs)
        check_labels(labels, outputs)
        tell_of(_sums, apply, variables, inputs, np.asarray(labels))
        sums += np.array([*map(float, _sums(apply, variables, inputs, np.asarray(labels))), np.size(labels)])
    if not sums[2]:
        raise ValueError("evaluate needs data: got no batches")
    return Metrics(float(sums[0] / sums[2]), float(sums[1] / sums[2]), int(sums[2]))


def _check_classified(labels: Any, outputs: PyTree) -> None:
    try:
        check_label_shapes(labels, outputs)
    except ValueError as error:
        raise ValueError(f"{error}; for another loss than cross entropy pass objective=, as PerExample(function)") from None


def _judged(objective: Objective, apply: Apply, variables: PyTree, batches: Iterable[tuple]) -> Metrics:
    """The objective over all batches, and the accuracy where their targets are labels."""
    terms: list[list[Term]] = []
    hits: list[tuple[float, int]] = []
    check, examples = None, 0.0
    for batch in measured(batches, masks=objective.masks, each=objective.map_batches):
        if check is None:
            check = objective.checker(apply, variables, None, batch)
            objective.map_batches(lambda pair: warn_of_pixels(pair[0], stacklevel=5), batch)
        check(batch)
        tell_of(terms_of, objective, apply, variables, None, batch)
        terms.append(terms_of(objective, apply, variables, None, batch))
        examples += float(objective.weight(batch))
        objective.map_batches(lambda pair: hits.append(_hits(apply, variables, pair)), batch)
    if not terms:
        raise ValueError("evaluate needs data: got no batches")
    right, labels = np.sum(hits, axis=0)
    return Metrics(float(right / max(labels, 1)), mean_over_batches(terms), int(examples))


def _hits(apply: Apply, variables: PyTree, batch: tuple) -> tuple[float, int]:
    """How many labels of a batch are predicted, of how many; NaN where its targets are no labels of classes."""
    inputs, labels, *mask = batch
    if not np.issubdtype(getattr(labels, "dtype", type(None)), np.integer):
        return np.nan, 1
    outputs = _outputs(apply, variables, inputs)
    try:
        check_labels(labels, outputs, *mask)
    except ValueError:
        return np.nan, 1
    counts = kept(jnp.asarray(mask[0] if mask else np.ones(len(labels), bool)), labels.shape)
    return float(((outputs.argmax(-1) == labels) & counts).sum()), int(counts.sum())


@functools.partial(jax.jit, static_argnums=0)
def _outputs(apply: Apply, variables: PyTree, inputs: PyTree) -> PyTree:
    return apply(variables, inputs)


@functools.partial(jax.jit, static_argnums=0)
def _sums(apply: Apply, variables: PyTree, inputs: Array, labels: Int[Array, "n ..."]) -> tuple[Array, Array]:
    logits = apply(variables, inputs).astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()
    return (logits.argmax(-1) == labels).sum(), loss


@dataclass(frozen=True)
class LogitEnsemble:
    """The mean of the logits of several networks, as one function of the list of their variables: N times the cost.

    Attributes:
        apply: the network.

    Example:
        >>> ensemble = nm.LogitEnsemble(lambda v, x: x @ v["w"])
        >>> print(ensemble([{"w": jnp.eye(2)}, {"w": 3 * jnp.eye(2)}], jnp.ones((1, 2))))
        [[2. 2.]]
    """

    apply: Apply

    def __call__(self, models: Sequence[PyTree], inputs: Array) -> Float[Array, "n classes"]:
        """Logits of the ensemble."""
        return mean([self.apply(model, inputs) for model in models])


def flops(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> float:
    """Floating-point operations of one call, as XLA compiles it: what several heads compute alike counts once.

    Args:
        apply: any function.
        variables: arrays or `jax.ShapeDtypeStruct`.
        inputs: a batch, of arrays or shapes; the operations are those of the whole batch.

    Example:
        >>> w, x = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(3, 4), (2, 3)])
        >>> nm.flops(lambda v, x: x @ v["w"], {"w": w}, x)  # two examples: 2 x 2 x 3 x 4
        48.0
    """
    analysis: Any = jax.jit(apply).lower(variables, *inputs).compile().cost_analysis()
    return float(analysis["flops"])


def parameters(variables: PyTree) -> int:
    """The number of parameters: elements of floating-point leaves, without running statistics.

    Example:
        >>> nm.parameters({"params": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, "batch_stats": {"mean": jnp.ones(3)}})
        9
    """
    return sum(int(np.size(x)) for x in weights_of(variables).values())
