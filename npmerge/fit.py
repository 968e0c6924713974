"""The Optax loop: descend on theta, keep the best, never lose it."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from alignment.checks import check_count, check_key, kind_of
from alignment.graph import PyTree
from npmerge.batches import check_filled, measured
from npmerge.stack import Stack

Loss = Callable[..., Array]  # (theta, stack, batch), and key= if it draws at random
Status = Literal["finished", "stopped early", "diverged"]


class History(NamedTuple):
    """What was measured on the way, as numpy arrays.

    `loss[i]` is that of step i on its batch before the update; `held_out_loss[j]` was found after `held_out_step[j]` updates.
    """

    loss: np.ndarray
    held_out_step: np.ndarray
    held_out_loss: np.ndarray


class FitResult(NamedTuple):
    """Theta (the best on held-out data where there is any, the start included, else the last good one), history, status."""

    theta: PyTree
    history: History
    status: Status


def fit(
    theta: PyTree,
    loss: Loss,
    stack: PyTree,
    batches: Iterable[tuple],
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    held_out: Iterable[tuple] = (),
    every: int = 25,
    patience: int | None = None,
    progress: Callable[[int, float], Any] | None = None,
    key: Array | None = None,
) -> FitResult:
    """Minimise `loss(theta, stack, batch)` over the floating-point leaves of theta.

    Pass the same `loss` and `optimizer` objects again to reuse the compiled step. The given theta is not changed.

    Args:
        theta: where to start; integer leaves (the permutations of an alignment) stay as they are.
        loss: for example `weight_space(merge, apply, objective)`; any function of (theta, stack, batch).
        stack: the models, or what else the loss takes besides; passed on as it is, None if it needs none.
        batches: `(inputs, targets)` tuples: a list or tuple is cycled, an iterator must last for all steps.
        optimizer: an Optax transformation.
        steps: number of updates; 0 returns theta as it is.
        held_out: batches on which theta is judged before the first step and every `every` steps: the best one is
            returned, which never ends above the start. Training batches in a list may stand here, too.
        every: steps between judgements, and between checks for divergence and calls of `progress`.
        patience: stop after so many judgements in a row without a new best.
        progress: called with the step and the latest training loss.
        key: randomness for a loss that draws at random (`along_line`): it is called with `key=`, another one in each step. On
            held-out batches it is called without, and must then be deterministic.

    Raises:
        ValueError: nothing to learn in theta, data that end early (the step is named), labels out of range, negative steps,
            arguments in another order, an optimizer that is none.

    A loss or gradient that is not finite stops the run with status "diverged"; theta is that of the last good step.
    """
    if not callable(loss) or isinstance(batches, Stack | Mapping) or not isinstance(batches, Iterable):
        got = ", ".join(map(kind_of, (theta, loss, stack, batches, optimizer)))
        raise ValueError(f"fit takes (theta, loss, stack, batches, optimizer), got ({got})")
    _refuse_nonsense(optimizer, steps, every, patience, held_out)
    check_key(key)
    check = _Checker(loss, theta, stack)
    learned, fixed = _partition(theta)
    if not jax.tree.leaves(learned):
        raise ValueError("nothing to learn: theta has no floating-point leaves")
    held_out = list(measured(held_out, masks=getattr(loss, "masks", False), each=getattr(loss, "map_batches", None)))
    state = _State(jax.tree.map(jnp.array, learned), optimizer.init(learned), jnp.array(True))
    for batch in held_out:
        check(batch)
    judge = _Judge(loss, fixed, stack, held_out)
    judge(0, state.learned)
    losses: list[Array] = []
    status: Status = "finished"
    source = iter(_endless(batches, steps))
    for step in range(1, steps + 1):
        batch = next(source)
        check(batch)
        state, value = _step(loss, optimizer, state, fixed, stack, batch, _at_step(key, step))
        losses.append(value)
        if step % every and step < steps:
            continue
        if progress is not None:
            progress(step, float(value))
        if not bool(state.healthy):
            status = "diverged"
            break
        judge(step, state.learned)
        if patience is not None and judge.stale >= patience:
            status = "stopped early" if step < steps else "finished"
            break
    best = judge.best if held_out else state.learned
    history = History(np.array(jax.device_get(losses), np.float32), np.array(judge.steps), np.array(judge.losses, np.float32))
    return FitResult(_join(best, fixed), _until_bad(history), status)


def _refuse_nonsense(optimizer: Any, steps: int, every: int, patience: int | None, held_out: Iterable[tuple]) -> None:
    check_count("steps", steps, 0)
    check_count("every", every)
    if patience is not None:
        check_count("patience", patience)
    if patience is not None and not held_out:
        raise ValueError("patience needs held-out data to judge by: got none")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer must be an Optax transformation such as optax.adam(1e-2), got {type(optimizer).__name__}")


class _State(NamedTuple):
    learned: PyTree
    optimizer: PyTree
    healthy: Array  # no step so far had a non-finite loss or gradient


def _at_step(key: Array | None, step: int) -> dict[str, Array]:
    return {} if key is None else {"key": jax.random.fold_in(key, step)}


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    state: _State,
    fixed: PyTree,
    stack: Stack | None,
    batch: tuple,
    random: dict[str, Array],
) -> tuple[_State, Array]:
    value, gradient = jax.value_and_grad(lambda learned: loss(_join(learned, fixed), stack, batch, **random))(state.learned)
    with jax.numpy_dtype_promotion("standard"):  # Optax counts in integers; strictness is for the caller's own code
        updates, new = optimizer.update(gradient, state.optimizer, state.learned)
        learned = optax.apply_updates(state.learned, updates)
    finite = [jnp.isfinite(x).all() for x in jax.tree.leaves((value, gradient, learned))]
    good = functools.reduce(jnp.logical_and, finite, state.healthy)
    # a bad step changes nothing, and no later one does: the device runs ahead of the check on the host
    kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), _State(learned, new, good), state)
    return kept._replace(healthy=good), value


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(loss: Loss, learned: PyTree, fixed: PyTree, stack: Stack | None, batch: tuple) -> Array:
    return loss(_join(learned, fixed), stack, batch)


class _Judge:
    """Held-out losses so far, the best theta among them, and how many judgements ago that was."""

    def __init__(self, loss: Loss, fixed: PyTree, stack: Stack | None, held_out: Sequence[tuple]):
        self.loss, self.fixed, self.stack, self.held_out = loss, fixed, stack, held_out
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.best: PyTree = None
        self.lowest = math.inf
        self.stale = 0

    def __call__(self, step: int, learned: PyTree) -> None:
        if not self.held_out:
            return
        sizes = [len(leaves[0]) if (leaves := jax.tree.leaves(batch)) else 1 for batch in self.held_out]
        values = [_evaluate(self.loss, learned, self.fixed, self.stack, batch) for batch in self.held_out]
        value = float(np.average(jax.device_get(values), weights=sizes))
        self.stale += 1
        if self.best is None or (math.isfinite(value) and value < self.lowest):  # one of -inf is an overflow
            self.lowest = value if math.isfinite(value) else math.inf
            self.best, self.stale = jax.tree.map(jnp.array, learned), 0  # a copy: the step donates its state
        self.steps.append(step)
        self.losses.append(value)


def _until_bad(history: History) -> History:
    """The history up to and including the first loss that is not finite: the steps after it did nothing."""
    bad = np.flatnonzero(~np.isfinite(history.loss))
    return history._replace(loss=history.loss[: bad[0] + 1]) if len(bad) else history


def _endless(batches: Iterable[tuple], steps: int) -> Iterator[tuple]:
    if isinstance(batches, Sequence) and len(batches):
        yield from itertools.cycle(batches)
    count = 0
    for batch in batches:
        yield batch
        count += 1
    raise ValueError(f"the data ended after {count} batches, {steps} steps were asked for")


class _Checker:
    """The loss's own checks: of theta and the stack at once, of batches as they come, if it has any.

    That of batches is built from the first one, cheap for the others.
    """

    def __init__(self, loss: Loss, theta: PyTree, stack: Stack | None):
        if (check_theta := getattr(loss, "check_theta", None)) is not None:
            check_theta(theta, stack)
        self.build = getattr(loss, "checker", None)
        self.arguments = theta, stack
        self.check: Callable[[tuple], None] | None = None

    def __call__(self, batch: tuple) -> None:
        check_filled(batch)
        if self.build is not None and self.check is None:
            self.check = self.build(*self.arguments, batch)
        if self.check is not None:
            self.check(batch)


def _partition(theta: PyTree) -> tuple[PyTree, PyTree]:
    """The floating-point leaves and the others, each tree with None in the places of the other."""

    def floating(x: Any) -> bool:
        return jnp.issubdtype(jnp.result_type(x), jnp.floating)

    learned = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)) if floating(x) else None, theta)
    return learned, jax.tree.map(lambda x: None if floating(x) else x, theta)


def _join(learned: PyTree, fixed: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: b if a is None else a, learned, fixed, is_leaf=lambda x: x is None)
