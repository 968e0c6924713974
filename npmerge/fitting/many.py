"""Many networks of one architecture trained together: one compiled step for all of them."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from alignment.checks import check_count
from alignment.graph import PyTree
from npmerge.batches import check_batch, check_filled
from npmerge.fitting.source import Source
from npmerge.fitting.updates import Constants, Run, State, joined, partition, update
from npmerge.objectives.base import Loss
from npmerge.sharding import layout_of


class FittedMany(NamedTuple):
    """What `fit_many` returns.

    Attributes:
        theta: of all networks after the last step, leaves (networks, ...): a `Stack` of them is `nm.Stack(theta)`.
        loss: (networks, steps), of each step on its batch, before the update.

    Example:
        >>> loss = lambda theta, stack, batch: jnp.square(theta - batch[1]).mean()
        >>> found = nm.fit_many(jnp.zeros(2), loss, [[(None, jnp.ones(1))], [(None, 2 * jnp.ones(1))]], optax.sgd(0.5), steps=1)
        >>> print(found.theta, found.loss.ravel())
        [1. 2.] [1. 4.]
    """

    theta: PyTree
    loss: Float[np.ndarray, "networks steps"]


def fit_many(
    theta: PyTree,
    loss: Loss,
    batches: Sequence[Iterable[tuple]],
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    stack: PyTree = None,
    every: int | None = None,
    seen: Callable[[int, PyTree], Any] | None = None,
) -> FittedMany:
    """Train networks side by side, each from its own start on its own batches: `fit` of every one, vmapped into one step.

    Small networks are computed together at nearly the price of one. Nothing is held out: networks are as they are after the
    last step, or as `seen` saw them.

    Args:
        theta: where each starts, leaves (networks, ...), as `stack_models(...).params` is; integer leaves stay as they are.
        loss: as of `fit`, of one network.
        batches: for each network its `(inputs, targets)`, all of one size; a list is cycled.
        optimizer: an Optax transformation; each network has a state of its own.
        steps: number of updates.
        stack: what the loss takes besides, the same for all networks.
        every: steps between calls of `seen`; None for once, at the end.
        seen: called with the step and theta of all networks, before the first step and after every `every` of them. What it is
            given it may keep.

    Raises:
        ValueError: another number of sources of batches than networks, batches of different sizes, data that end early, a
            network that diverged (which, and at which step).

    Example:
        >>> loss = nm.fine_tuning(lambda v, x: x @ v["w"], nm.CrossEntropy())
        >>> data = [nm.shuffled(np.eye(2, dtype=np.float32), np.array(labels), 2, seed=0) for labels in ([0, 1], [1, 0])]
        >>> found = nm.fit_many({"w": jnp.zeros((2, 2, 2))}, loss, data, optax.sgd(1.0), steps=2)
        >>> print(found.loss.round(2))
        [[0.69 0.47]
         [0.69 0.47]]
        >>> print(found.theta["w"][1].round(1))  # the second has learned the other way round
        [[-0.4  0.4]
         [ 0.4 -0.4]]
    """
    count = _count(theta, batches)
    check_count("steps", steps, 0)
    every = steps if every is None else every
    learned, fixed = partition(theta, getattr(loss, "frozen", None))
    learned = jax.tree.map(jnp.array, learned)  # a copy: the step donates its state
    state = State(learned, jax.vmap(optimizer.init)(learned), jnp.ones(count, bool))
    run, sources, losses = Run(loss, optimizer, layout_of(None, "jit", None)), [Source(b, steps) for b in batches], []

    def show(step: int) -> None:
        if seen is not None:
            seen(step, joined(jax.tree.map(jnp.array, state.learned), fixed))

    show(0)
    for step in range(1, steps + 1):
        state, value = _step(run, state, fixed, stack, _side_by_side([next(source) for source in sources]))
        losses.append(value)
        if step % every == 0 or step == steps:
            _check_healthy(state.healthy, losses)
            show(step)
    found = np.stack(jax.device_get(losses), 1) if losses else np.zeros((count, 0), np.float32)
    return FittedMany(joined(state.learned, fixed), found)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _step(run: Run, state: State, fixed: PyTree, stack: PyTree, batch: tuple) -> tuple[State, Float[Array, " networks"]]:
    """`update` of each network."""

    def one(state: State, fixed: PyTree, batch: tuple) -> tuple[State, Array]:
        return update(run, state, Constants(fixed, stack), batch, {})

    return jax.vmap(one)(state, fixed, batch)


def _count(theta: PyTree, batches: Any) -> int:
    """How many networks there are."""
    lengths = {np.shape(x)[0] if np.ndim(x) else 0 for x in jax.tree.leaves(theta)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"theta of many networks has leaves (networks, ...), got lengths {sorted(lengths)}")
    (count,) = lengths
    if not isinstance(batches, Sequence) or len(batches) != count:
        got = len(batches) if isinstance(batches, Sequence) else type(batches).__name__
        raise ValueError(f"batches must be a list with a source for each of {count} networks, got {got}")
    return count


def _side_by_side(batches: Sequence[tuple]) -> tuple:
    """One batch (networks, examples, ...)."""
    for batch in batches:
        check_batch(batch)
        check_filled(batch)
    shapes = {tuple(np.shape(x) for x in jax.tree.leaves(batch)) for batch in batches}
    if len(shapes) > 1:
        raise ValueError(f"batches of networks that are trained together must be of one shape, got {sorted(shapes)}")
    return jax.tree.map(lambda *x: np.stack(x), *batches)


def _check_healthy(healthy: Bool[Array, " networks"], losses: Sequence[Array]) -> None:
    bad = np.flatnonzero(~np.asarray(healthy))
    if len(bad):
        finite = np.isfinite([np.asarray(x)[bad[0]] for x in losses])
        step = int(np.argmin(finite)) + 1 if not finite.all() else len(losses)
        raise ValueError(f"network {bad[0]} diverged at step {step} or shortly before: try a lower rate")
