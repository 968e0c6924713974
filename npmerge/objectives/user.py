"""Objectives of one's own."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.checks import check_flags, kind_of
from alignment.graph import PyTree
from npmerge.batches import check_lengths
from npmerge.masks import masked_mean
from npmerge.objectives.base import Apply, Check, Objective
from npmerge.objectives.of_user import kinds_of, of_pair, outputs_of, told, told_of_network
from npmerge.stack import Stack


@dataclass(frozen=True)
class UserObjective(Objective):
    """Any pure function of `(apply, params, stack, batch)` to a scalar, as an objective.

    Attributes:
        function: it. Name it once: a loss is compiled for each function, and two lambdas are two.
        masks: whether it heeds the third part of a batch: `npmerge.masks.masked_mean` takes such a mean.

    Raises:
        ValueError: no function.

    Example:
        >>> def largest(apply, params, stack, batch):
        ...     return jnp.abs(apply(params, batch[0]) - batch[1]).max()
        >>> loss = nm.fine_tuning(lambda v, x: x @ v, nm.UserObjective(largest))
        >>> print(loss(jnp.eye(2), None, (jnp.eye(2), jnp.zeros((2, 2)))))
        1.0
    """

    function: Callable[[Apply, PyTree, Stack | None, tuple], Float[Array, ""]]
    masks: bool = False

    def __post_init__(self) -> None:
        _check_function("UserObjective", ("apply", "params", "stack", "batch"), self.function)
        check_flags(self)

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """What the function returns."""
        return self.function(apply, params, stack, batch)

    def checker(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Check:
        """The function must return a real number."""
        self.check(batch, None)
        hints = [""]

        def network(params: PyTree, inputs: PyTree) -> PyTree:
            outputs = told_of_network(apply, params, inputs)
            hints.append(_hint(outputs))
            return outputs

        found = told(
            f"the function of UserObjective, on a batch of {kinds_of(batch)},",
            lambda: jax.eval_shape(functools.partial(self.function, network), params, stack, batch),
            hint=lambda _: max(hints),
        )
        if not _is_scalar(found):
            got = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", found)
            raise ValueError(f"the function of UserObjective must return a floating-point scalar, got {got}")
        return lambda batch: self.check(batch, None)


@dataclass(frozen=True)
class PerExample(Objective):
    """The mean over the examples that count of any pure function of `(outputs, targets)` to values (examples, ...).

    Attributes:
        function: of what the network returns and of the targets, such as `optax.losses.sigmoid_binary_cross_entropy`. Targets
            may be a tree, as `{"labels": labels, "weights": weights}`: it is given to the function as it is.

    Raises:
        ValueError: no function.

    Example:
        >>> objective = nm.PerExample(lambda outputs, targets: jnp.square(outputs - targets).mean(-1))
        >>> batch = jnp.eye(2), jnp.zeros((2, 2)), np.array([True, False])
        >>> print(objective(lambda v, x: x @ v, jnp.array([[3.0, 1.0], [9.0, 9.0]]), None, batch))
        5.0
    """

    function: Callable[[PyTree, PyTree], Float[Array, "examples ..."]]

    masks = True

    def __post_init__(self) -> None:
        _check_function("PerExample", ("outputs", "targets"), self.function)

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The mean over the batch."""
        values = self.function(apply(params, batch[0]), jax.tree.map(jnp.asarray, batch[1]))
        return masked_mean(values.astype(jnp.float32), batch)

    def checker(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Check:
        """The function must return values for each example."""
        self.check(batch, None)
        examples = len(jax.tree.leaves(batch[0])[0])
        outputs = outputs_of(apply, params, batch[0])
        what = f"the function of PerExample, on outputs of {kinds_of(outputs)} and targets of {kinds_of(batch[1])},"
        found = told(what, lambda: jax.eval_shape(self.function, outputs, batch[1]), hint=lambda _: _hint(outputs))
        if np.shape(found)[:1] != (examples,):
            raise ValueError(
                f"the function of PerExample must return values for each of {examples} examples: got {np.shape(found)}"
            )
        given = [np.shape(x)[:2] for x in jax.tree.leaves((outputs, batch[1]))]
        if np.shape(found)[:2] == (examples, examples) and (examples, examples) not in given:
            raise ValueError(f"{what} pairs each example with every other, by broadcasting: it returns {np.shape(found)}")
        return lambda batch: self.check(batch, None)

    def check(self, batch: tuple, outputs: PyTree) -> None:
        """Targets must be as many as inputs."""
        super().check(batch, outputs)
        check_lengths(batch)


def _hint(outputs: PyTree) -> str:
    pair = of_pair(outputs)
    return f"; apply returns {pair}" if pair else ""


def _check_function(owner: str, takes: tuple[str, ...], function: object) -> None:
    """Raise ValueError for what cannot be called with these arguments; what has no signature, as some built-ins, may."""
    call = f"{owner} takes a function of ({', '.join(takes)})"
    if not callable(function) or isinstance(function, type | Objective):
        raise ValueError(f"{call}, got {kind_of(function)}")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return
    try:
        signature.bind(*takes)
    except TypeError:
        other = "; of (outputs, targets) make a PerExample, in recipes per_example" if owner == "UserObjective" else ""
        raise ValueError(f"{call}, got {getattr(function, '__name__', kind_of(function))}{signature}{other}") from None


def _is_scalar(x: jax.ShapeDtypeStruct) -> bool:
    return getattr(x, "shape", None) == () and jnp.issubdtype(x.dtype, jnp.floating)
