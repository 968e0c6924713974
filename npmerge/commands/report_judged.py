"""How good networks are, example by example, so that each number has its interval, and differences are paired."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float64

from alignment.graph import PyTree
from npmerge.learning.data import Examples
from npmerge.reports.intervals import Interval, mean, wilson


class Judged(NamedTuple):
    """One network on some examples; of an example with several predictions, as of tokens, their means.

    Attributes:
        right: the fraction of its predictions that are right.
        loss: their mean cross entropy, in nats.
    """

    right: Float64[np.ndarray, " examples"]
    loss: Float64[np.ndarray, " examples"]


def judged(apply: Callable[..., PyTree], variables: PyTree, examples: Examples, size: int) -> Judged:
    """A network on examples that have labels of what it predicts.

    Args:
        apply: the network in evaluation mode.
        variables: of it.
        examples: all are judged.
        size: examples that are computed together.
    """
    found = [_each(apply, variables, inputs, np.asarray(labels)) for inputs, labels in examples.batches(size)]
    right, loss = (np.concatenate([np.asarray(x[k], np.float64) for x in found]) for k in (0, 1))
    return Judged(right, loss)


@functools.partial(jax.jit, static_argnums=0)
def _each(apply: Callable[..., PyTree], variables: PyTree, inputs: Array, labels: Array) -> tuple[Array, Array]:
    logits = apply(variables, inputs).astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = (logits.argmax(-1) == labels).astype(jnp.float32)
    axes = tuple(range(1, loss.ndim))
    return right.mean(axes), loss.mean(axes)


def rows_of(networks: Iterable[tuple[str, Judged]], result: str) -> dict[str, Any]:
    """Accuracy and loss of each with intervals of 95 %, and by how much the result differs on the same examples.

    Args:
        networks: by name.
        result: the name of the one that the others are compared with.
    """
    found = dict(networks)
    return {name: _row(x) | ({} if name == result else _differences(x, found[result])) for name, x in found.items()}


def _row(found: Judged) -> dict[str, Any]:
    single = bool(np.isin(found.right, (0, 1)).all())
    accuracy = wilson(float(found.right.sum()), len(found.right)) if single else mean(found.right)
    return {"accuracy": accuracy._asdict(), "loss": mean(found.loss)._asdict()}


def _differences(other: Judged, result: Judged) -> dict[str, Any]:
    """Of the result less the other, example by example: what both find easy or hard does not count."""
    return {
        "gain": mean(result.right - other.right)._asdict(),
        "loss_gain": mean(result.loss - other.loss)._asdict(),
    }


def interval(row: Mapping[str, float | None]) -> Interval:
    """As it was before JSON, which has no infinity."""
    value = row["value"]
    assert value is not None
    low, high = (row[end] if row[end] is not None else sign * np.inf for end, sign in (("low", -1), ("high", 1)))
    return Interval(value, low, high)  # type: ignore[arg-type]
