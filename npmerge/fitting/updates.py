"""One step of a fit, traced: the loss, its gradient over all parts of a batch, the optimiser's update."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from alignment.graph import PyTree, path_name
from npmerge.masks import weight_of
from npmerge.objectives.base import Loss
from npmerge.sharding import Layout, running


class State(NamedTuple):
    """What a step changes.

    Attributes:
        learned: the leaves of theta that are.
        optimizer: the optimiser's state.
        healthy: whether every number so far was finite.
        good: the latest leaves whose loss was found to be; None where somebody else keeps good ones.
    """

    learned: PyTree
    optimizer: PyTree
    healthy: Bool[Array, ""]
    good: PyTree = None


class Constants(NamedTuple):
    """What a step reads and leaves as it is.

    Attributes:
        fixed: the leaves of theta that are not learned.
        stack: the models, or what else the loss takes besides theta.
    """

    fixed: PyTree
    stack: PyTree


@dataclass(frozen=True)
class Run:
    """What all steps of a fit have in common; static.

    Attributes:
        loss: that is minimised.
        optimizer: an Optax transformation.
        layout: where arrays lie.
        accumulate: parts of a batch, one after another.
    """

    loss: Loss
    optimizer: optax.GradientTransformation
    layout: Layout
    accumulate: int = 1


def update(run: Run, state: State, constants: Constants, batch: tuple, random: dict[str, Array]) -> tuple[State, Array]:
    """The state after a step, and the loss before it. A bad step ends at the latest good theta, and so does every later one.

    Moments may be bad after a bad step, but no longer matter: the old ones are not kept, the new are written in their place.
    Every update waits until all of the gradient is known to be finite: else XLA holds updates of some leaves, of all models,
    while it still finds the gradient of others.
    """
    value, gradient = _gradient(run, state.learned, constants, batch, random)
    seen = _finite(state.healthy, value)
    good = None if state.good is None else _chosen(seen, state.learned, state.good)
    healthy = _finite(seen, gradient)
    gradient = jax.tree.map(lambda x: jnp.where(healthy, x, jnp.nan), gradient)
    held = getattr(run.loss, "holds", None)
    return run.layout.keep(stepped(run.optimizer, state._replace(healthy=healthy, good=good), gradient, held)), value


def stepped(
    optimizer: optax.GradientTransformation, state: State, gradient: PyTree, held: Callable[[str], bool] | None = None
) -> State:
    """The state after the optimiser's step; theta is the latest good one where that is not finite. The host sees it later.

    Leaves whose paths are `held` stay as they are, whatever the optimiser makes of them, such as weight decay.
    """
    with jax.numpy_dtype_promotion("standard"):  # Optax counts in integers; strictness is for the caller's own code
        updates, moments = optimizer.update(gradient, state.optimizer, state.learned)
        learned = optax.apply_updates(state.learned, updates)
    if held is not None:
        learned = jax.tree_util.tree_map_with_path(
            lambda path, new, old: old if held(path_name(path)) else new, learned, state.learned
        )
    healthy = _finite(state.healthy, learned)
    kept = _chosen(healthy, learned, state.learned if state.good is None else state.good)
    return State(kept, moments, healthy, state.good)


def _chosen(condition: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _finite(healthy: Bool[Array, ""], tree: PyTree) -> Bool[Array, ""]:
    """Whether all numbers are finite, as they were before."""
    return functools.reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)], healthy)


def evaluate(
    run: Run, learned: PyTree, constants: Constants, batch: tuple, random: dict[str, Array]
) -> list[tuple[Array, Array]]:
    """The terms of the loss of theta on a batch, and of how many examples each is the mean; takes what `update` takes.

    A loss is one term unless it says otherwise (`Objective.terms`).
    """
    theta, loss = joined(learned, constants.fixed), run.loss
    with running(run.layout):
        if hasattr(loss, "terms"):
            found = loss.terms(theta, constants.stack, batch)
        else:
            found = [(loss(theta, constants.stack, batch, **random), _weight(loss, batch))]
    return [(run.layout.mean(value, weight), run.layout.total(weight)) for value, weight in found]


def _gradient(run: Run, learned: PyTree, constants: Constants, batch: tuple, random: dict[str, Array]) -> tuple[Array, PyTree]:
    """The loss and its gradient, the mean over all parts of the batch."""

    def value(learned: PyTree, part: tuple) -> Array:
        return run.loss(joined(learned, constants.fixed), constants.stack, part, **random)

    def of(part: tuple) -> tuple[Array, PyTree]:
        with running(run.layout):
            return jax.value_and_grad(value)(learned, part)

    if run.accumulate == 1:
        return run.layout.mean(of(batch), _weight(run.loss, batch))

    def add(total: tuple, part: tuple) -> tuple[tuple, Array]:
        weight = _weight(run.loss, part)
        return jax.tree.map(lambda t, x: t + weight.astype(x.dtype) * x, total, of(part)), weight

    parts = jax.tree.map(lambda x: _every(x, run.accumulate), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of, first))
    total, weights = jax.lax.scan(add, nothing, parts)
    weight = weights.sum()
    found = jax.tree.map(lambda x: x / jnp.maximum(weight, 1).astype(x.dtype), total)
    return run.layout.mean(found, weight)


def _weight(loss: Loss, batch: tuple) -> Array:
    """How many examples the loss is the mean of, or positions of them."""
    weight: Callable[[tuple], Array] = getattr(loss, "weight", weight_of)
    return weight(batch)


def _every(x: Array, parts: int) -> Array:
    """(parts, examples / parts, ...): part k takes every parts-th example, so that devices have equal shares of each."""
    if not x.ndim:
        return jnp.broadcast_to(x, (parts,))
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def partition(theta: PyTree, frozen: Callable[[str], bool] | None = None) -> tuple[PyTree, PyTree]:
    """The floating-point leaves whose paths are not `frozen` and the others, each tree with None in the places of the other."""

    def learned(path: tuple, x: Any) -> bool:
        return jnp.issubdtype(jnp.result_type(x), jnp.floating) and not (frozen is not None and frozen(path_name(path)))

    each = jax.tree_util.tree_map_with_path
    first = each(lambda path, x: jnp.asarray(x, jnp.result_type(x)) if learned(path, x) else None, theta)
    return first, each(lambda path, x: None if learned(path, x) else x, theta)


def joined(learned: PyTree, fixed: PyTree) -> PyTree:
    """The tree whose leaves `partition` has told apart."""
    return jax.tree.map(lambda a, b: b if a is None else a, learned, fixed, is_leaf=lambda x: x is None)
