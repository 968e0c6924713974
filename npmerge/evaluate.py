"""How good a network is, and how large: accuracy and loss, of ensembles too; operations and parameters."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from alignment.graph import PyTree, weights_of
from npmerge.base import mean
from npmerge.batches import measured
from npmerge.objectives import Apply, check_labels
from npmerge.operations import tell_of


class Metrics(NamedTuple):
    """Fraction classified correctly, mean cross entropy in nats, number of examples (of tokens, where those have labels)."""

    accuracy: float
    loss: float
    examples: int


def evaluate(apply: Apply, variables: PyTree, batches: Iterable[tuple]) -> Metrics:
    """Accuracy and cross entropy over all batches `(inputs, labels)`, each example counted once.

    Raises:
        ValueError: no batches, or labels out of range.
    """
    sums, outputs = np.zeros(3), None
    for inputs, labels in measured(batches):
        if outputs is None:
            outputs = jax.eval_shape(apply, variables, inputs)
        check_labels(labels, outputs)
        tell_of(_sums, apply, variables, inputs, np.asarray(labels))
        sums += np.array([*map(float, _sums(apply, variables, inputs, np.asarray(labels))), np.size(labels)])
    if not sums[2]:
        raise ValueError("evaluate needs data: got no batches")
    return Metrics(float(sums[0] / sums[2]), float(sums[1] / sums[2]), int(sums[2]))


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
        return mean([self.apply(model, inputs) for model in models])


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
