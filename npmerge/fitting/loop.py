"""A fit under way: its state, what was measured, where its data are."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from alignment.checks import first_line
from alignment.graph import PyTree
from npmerge.batches import check_filled
from npmerge.fitting.checkpoints import Saved, Saver, go_on, position_of
from npmerge.fitting.memory import check_step
from npmerge.fitting.updates import Feed, Loss, Run, State, evaluate, joined, partition, update
from npmerge.stack import Stack

Status = Literal["finished", "stopped early", "diverged"]


class History(NamedTuple):
    """What was measured on the way, as numpy arrays.

    `loss[i]` is that of step i on its batch before the update; `held_out_loss[j]` was found after `held_out_step[j]` updates.
    Where the first of them is the lowest, nothing better than the start was found, and theta is the start.
    """

    loss: np.ndarray
    held_out_step: np.ndarray
    held_out_loss: np.ndarray


class FitResult(NamedTuple):
    """Theta, history, status.

    Theta is the best on held-out data where there is any, the start included (see `History`); else the last one, or the latest
    whose loss was finite where the fit diverged. The status says why the fit ended, not how well: "finished" after all steps,
    "stopped early" by `patience`, "diverged".
    """

    theta: PyTree
    history: History
    status: Status


class Source(Iterator[tuple]):
    """Batches, as many as are asked for; a sequence of them is cycled."""

    def __init__(self, batches: Iterable[tuple], steps: int):
        self.steps, self.count = steps, 0
        self.batches = batches if isinstance(batches, Sequence) and len(batches) else None
        self.cycled = self.batches is not None
        self.source = iter(batches) if self.batches is None else itertools.cycle(self.batches)

    def __next__(self) -> tuple:
        try:
            batch = next(self.source)
        except StopIteration:
            raise ValueError(f"the data ended after {self.count} batches, {self.steps} steps were asked for") from None
        self.count += 1
        return batch

    @property
    def position(self) -> Any:
        """What `go_on` needs besides the number of batches."""
        return None if self.cycled else position_of(self.source)

    def go_on(self, position: Any, count: int) -> None:
        """Leave out the batches that an earlier part of a fit had."""
        go_on(self.source, position, count)
        self.count = count


class Judge:
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
        """Judge theta after a step."""
        if not self.held_out:
            return
        found = [self.evaluate(self.loss, None, self.run, learned, *self.given, self.feed(x), {}) for x in self.held_out]
        values, sizes = np.moveaxis(np.array(jax.device_get(self.run.layout.take(found)), np.float64), 2, 0)
        totals, counts = (np.where(sizes > 0, values, 0) * sizes).sum(axis=0), sizes.sum(axis=0)  # of each term alone
        value = sum((totals / np.where(counts > 0, counts, 1)).tolist())
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


class Checker:
    """The loss's own checks: of theta and the stack at once, of batches as they come, if it has any.

    That of batches is built from the first one of each shape, cheap for the others.
    """

    def __init__(self, loss: Loss, theta: PyTree, stack: Stack | None):
        if (check_theta := getattr(loss, "check_theta", None)) is not None:
            check_theta(theta, stack)
        self.build = getattr(loss, "checker", None)
        self.arguments = theta, stack
        self.checks: dict[Any, Callable[[tuple], None]] = {}

    def __call__(self, batch: tuple) -> None:
        """Raise ValueError for a batch that cannot be learned from."""
        check_filled(batch)
        if self.build is None:
            return
        leaves, structure = jax.tree.flatten(batch)
        kind = structure, *((getattr(x, "dtype", type(x)), np.shape(x)[1:]) for x in leaves)
        if kind not in self.checks:
            self.checks[kind] = self._built(batch)
        self.checks[kind](batch)

    def _built(self, batch: tuple) -> Callable[[tuple], None]:
        try:
            return self.build(*self.arguments, batch)  # type: ignore[misc]
        except ValueError:
            raise
        except Exception as error:  # whatever the network raises
            got = jax.tree.map(_kind, batch)
            raise ValueError(f"theta, models and a batch of {got} do not go together ({first_line(error)})") from error


def _kind(x: Any) -> str:
    return f"{getattr(x, 'dtype', type(x).__name__)} (n{''.join(f', {size}' for size in np.shape(x)[1:])})"


class Loop:
    """A fit under way: theta and what was measured of it."""

    def __init__(self, loss: Loss, optimizer: optax.GradientTransformation, run: Run, given: tuple, held_out: Sequence[tuple]):
        theta, stack = given
        self.loss, self.optimizer, self.run, self.layout = loss, optimizer, run, run.layout
        self.shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), (theta, stack))
        self.check = Checker(loss, theta, stack)
        learned, self.fixed = partition(theta)
        if not jax.tree.leaves(learned):
            raise ValueError("nothing to learn: theta has no floating-point leaves")
        for batch in held_out:
            self.check(batch)
        learned = jax.tree.map(jnp.array, learned)  # a copy: the step donates its state
        good = None if held_out else jax.tree.map(jnp.array, learned)  # else the judge keeps the best
        self.state = self.layout.place(State(learned, optimizer.init(learned), jnp.array(True), good))
        self.given = self.layout.place(self.fixed), self.layout.place(stack)
        self.judge = Judge(loss, run, self.given, held_out)
        self.compiled, self.feed = self.layout.compiled(update, donated=(3,)), Feed(loss, run)
        self.earlier, self.losses = np.zeros(0, np.float32), list[Array]()
        self.status: Status | None = None

    def step(self, batch: tuple, random: dict[str, Array]) -> None:
        """One update."""
        self.check(batch)
        if not self.losses:
            check_step(self.loss, self.optimizer, (*self.shapes, batch), self.layout)
        self.state, value = self.compiled(
            self.loss, self.optimizer, self.run, self.state, *self.given, self.feed(batch), random
        )
        self.losses.append(value)

    def look(self, step: int, steps: int, progress: Callable[[int, float], Any] | None, patience: int | None) -> None:
        """Report, judge, and say whether it is over."""
        if progress is not None:
            progress(step, float(self.layout.take(self.losses[-1])))
        if not bool(self.layout.take(self.state.healthy)):
            self.status = "diverged"
            return
        self.judge(step, self.state.learned)
        if (judged := getattr(progress, "judged", None)) is not None and self.judge.losses:
            judged(step, self.judge.losses[-1])
        if patience is not None and self.judge.stale >= patience and step < steps:
            self.status = "stopped early"

    def result(self) -> FitResult:
        """Theta, joined with what was not learned, and the history."""
        best = self.layout.take(self.judge.best if self.judge.held_out else self.state.learned)
        history = History(self._losses(), np.array(self.judge.steps), np.array(self.judge.losses, np.float32))
        return FitResult(joined(best, self.fixed), _until_bad(history), self.status or "finished")

    def saved(self, source: Source) -> Saved:
        """Everything that `resume` needs."""
        judge = self.judge
        arrays = {**self._arrays(), "losses": self._losses()}
        numbers = {"steps": judge.steps, "held_out": judge.losses, "lowest": judge.lowest, "stale": judge.stale}
        return Saved(arrays, {**numbers, "position": source.position, "status": self.status})

    def resume(self, saver: Saver, source: Source) -> int:
        """Go on from the newest checkpoint; the number of steps that it has."""
        found = saver.found(self._arrays(first=True))
        if found is None:
            return 0
        step, (arrays, numbers) = found
        self.state = self.layout.place(State(**arrays["state"]))
        self.earlier, judge = np.asarray(arrays["losses"]), self.judge
        judge.steps, judge.losses, judge.stale = numbers["steps"], numbers["held_out"], numbers["stale"]
        judge.lowest, self.status = numbers["lowest"], numbers["status"]
        judge.best = self.layout.place(arrays["best"]) if "best" in arrays else None
        source.go_on(numbers["position"], step)
        return step

    def _arrays(self, *, first: bool = False) -> dict[str, PyTree]:
        found = {"state": self.layout.logical(self.state)._asdict()}
        if self.judge.held_out:
            found["best"] = found["state"]["learned"] if first else self.layout.logical(self.judge.best)
        return found

    def _losses(self) -> np.ndarray:
        here = np.array(jax.device_get(self.layout.take(self.losses)), np.float32)
        return np.concatenate([self.earlier, here])
