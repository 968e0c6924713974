"""How good a network is, and how large: accuracy and loss, of ensembles too; operations and parameters."""

import functools
import warnings
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
from npmerge.batches import measured
from npmerge.objectives import Apply, check_labels
from npmerge.objectives.of_user import outputs_of
from npmerge.telling import tell_of


class Metrics(NamedTuple):
    """What `evaluate` returns.

    Attributes:
        accuracy: the fraction classified correctly.
        loss: the mean cross entropy, in nats.
        examples: how many there were; how many tokens, where those have labels.

    Example:
        >>> found = nm.evaluate(lambda v, x: x @ v, jnp.eye(2), [(jnp.eye(2), np.array([0, 1]))])
        >>> f"{found.accuracy:.0%} of {found.examples}, loss {found.loss:.2f}"
        '100% of 2, loss 0.31'
    """

    accuracy: float
    loss: float
    examples: int


def evaluate(apply: Apply, variables: PyTree, batches: Iterable[tuple]) -> Metrics:
    """Accuracy and cross entropy over all batches, each example counted once.

    Args:
        apply: `apply(variables, inputs) -> logits` (examples, ..., classes), evaluation mode.
        variables: of the network.
        batches: `(inputs, labels)`, labels integers (examples, ...) below the number of classes.

    Raises:
        ValueError: no batches, labels out of range, arguments in another order, or inputs on which the network raises.

    Warns:
        UserWarning: inputs that are images of bytes, which few networks take as they are.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> variables = {"w": jnp.eye(2), "u": 2 * jnp.eye(2)}
        >>> found = nm.evaluate(apply, variables, [(jnp.eye(2), np.array([0, 0]))])
        >>> found.accuracy, round(found.loss, 2)
        (0.5, 1.13)
    """
    call = "evaluate takes (apply, variables, batches)"
    check_kinds(call, (apply, Callable), (variables, object), (batches, Iterable))
    sums, outputs = np.zeros(3), None
    for inputs, labels in measured(batches):
        if outputs is None:
            outputs = outputs_of(apply, variables, inputs)
            _warn_of_pixels(inputs)
        check_labels(labels, outputs)
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
