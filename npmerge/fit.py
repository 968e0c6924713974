"""The Optax loop: descend on theta, keep the best, never lose it."""

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
from npmerge.sharding import Devices, layout_of
from npmerge.stack import Stack
from npmerge.updates import Feed, Loss, Run, State, evaluate, joined, partition, update

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
    devices: Devices = None,
    parallel: Literal["jit", "pmap"] = "jit",
    shard: Literal["features"] | None = None,
    accumulate: int = 1,
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
        devices: among which batches are divided by examples, or how many; None for JAX's own rule, where the arrays are. With
            several processes (`jax.distributed`) all of them call this with `jax.devices()`, each with its own examples, as
            many as the others. Batches that do not divide evenly are filled up, and a mask leaves that out of the loss.
        parallel: "jit" over a mesh, or "pmap", where devices None are all.
        shard: "features" divides theta, the optimiser's state and the models among the devices too; under jit only.
        accumulate: batches go through the network in so many parts one after another, in a part of the memory.

    Raises:
        ValueError: nothing to learn in theta, data that end early (the step is named), labels out of range, negative steps,
            arguments in another order, an optimizer that is none, more devices than there are, batches that do not divide
            where the loss takes no mask.

    A loss or gradient that is not finite stops the run with status "diverged"; theta is that of the last good step.
    """
    if not callable(loss) or isinstance(batches, Stack | Mapping) or not isinstance(batches, Iterable):
        got = ", ".join(map(kind_of, (theta, loss, stack, batches, optimizer)))
        raise ValueError(f"fit takes (theta, loss, stack, batches, optimizer), got ({got})")
    _refuse_nonsense(optimizer, steps, every, patience, held_out)
    check_key(key)
    check_count("accumulate", accumulate)
    layout = layout_of(devices, parallel, shard)
    run = Run(layout, accumulate)
    check = _Checker(loss, theta, stack)
    learned, fixed = partition(theta)
    if not jax.tree.leaves(learned):
        raise ValueError("nothing to learn: theta has no floating-point leaves")
    held_out = list(measured(held_out))
    for batch in held_out:
        check(batch)
    learned = jax.tree.map(jnp.array, learned)  # a copy: the step donates its state
    state = layout.place(State(learned, optimizer.init(learned), jnp.array(True)))
    given = layout.place(fixed), layout.place(stack)
    judge = _Judge(loss, run, given, held_out)
    judge(0, state.learned)
    step_of, feed = layout.compiled(update, donated=(3,)), Feed(loss, run)
    losses: list[Array] = []
    status: Status = "finished"
    source = iter(_endless(batches, steps))
    for step in range(1, steps + 1):
        batch = next(source)
        check(batch)
        state, value = step_of(loss, optimizer, run, state, *given, feed(batch), _at_step(key, step))
        losses.append(value)
        if step % every and step < steps:
            continue
        if progress is not None:
            progress(step, float(layout.take(value)))
        if not bool(layout.take(state.healthy)):
            status = "diverged"
            break
        judge(step, state.learned)
        if patience is not None and judge.stale >= patience:
            status = "stopped early" if step < steps else "finished"
            break
    best = layout.take(judge.best if held_out else state.learned)
    measured_losses = np.array(jax.device_get(layout.take(losses)), np.float32)
    history = History(measured_losses, np.array(judge.steps), np.array(judge.losses, np.float32))
    return FitResult(joined(best, fixed), _until_bad(history), status)


def _refuse_nonsense(optimizer: Any, steps: int, every: int, patience: int | None, held_out: Iterable[tuple]) -> None:
    check_count("steps", steps, 0)
    check_count("every", every)
    if patience is not None:
        check_count("patience", patience)
    if patience is not None and not held_out:
        raise ValueError("patience needs held-out data to judge by: got none")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer must be an Optax transformation such as optax.adam(1e-2), got {type(optimizer).__name__}")


def _at_step(key: Array | None, step: int) -> dict[str, Array]:
    return {} if key is None else {"key": jax.random.fold_in(key, step)}


class _Judge:
    """Held-out losses so far, the best theta among them, and how many judgements ago that was."""

    def __init__(self, loss: Loss, run: Run, given: tuple, held_out: Sequence[tuple]):
        self.loss, self.run, self.given, self.held_out = loss, run, given, held_out
        self.evaluate, self.feed = run.layout.compiled(evaluate), Feed(loss, run)
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.best: PyTree = None
        self.lowest = math.inf
        self.stale = 0

    def __call__(self, step: int, learned: PyTree) -> None:
        if not self.held_out:
            return
        sizes = [len(leaves[0]) if (leaves := jax.tree.leaves(batch)) else 1 for batch in self.held_out]
        values = [self.evaluate(self.loss, None, self.run, learned, *self.given, self.feed(x), {}) for x in self.held_out]
        value = float(np.average(jax.device_get(self.run.layout.take(values)), weights=sizes))
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
