"""A fit under way: its state and what was measured."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from alignment.checks import first_line
from alignment.graph import PyTree
from npmerge.batches import check_filled, warn_of_pixels
from npmerge.fitting.checkpoints import Saved, Saver
from npmerge.fitting.divergence import Recent
from npmerge.fitting.memory import check_step
from npmerge.fitting.plateau import Advice, Plateau, Slowed
from npmerge.fitting.source import Feed, Source
from npmerge.fitting.updates import Constants, Run, State, evaluate, joined, partition, update
from npmerge.objectives.base import Loss, mean_over_batches
from npmerge.objectives.of_user import kinds_of
from npmerge.stack import Stack

Status = Literal["finished", "stopped early", "diverged"]
UNUSED = optax.identity()


class History(NamedTuple):
    """What was measured on the way, as numpy arrays.

    Attributes:
        loss: `loss[i]` is that of step i on its batch, before the update.
        held_out_step: after how many updates theta was judged.
        held_out_loss: what was found there. Where the first is the lowest, nothing better than the start was found, and theta
            is the start (`FitResult.best_step` is 0).

    Example:
        >>> loss = lambda theta, stack, batch: jnp.square(theta - batch[1]).mean()
        >>> batches = [(None, jnp.ones(2))]
        >>> found = nm.fit(jnp.zeros(2), loss, None, batches, optax.sgd(0.5), steps=2, held_out=batches, every=1)
        >>> print(found.history.loss, found.history.held_out_step, found.history.held_out_loss)
        [1.   0.25] [0 1 2] [1.     0.25   0.0625]
    """

    loss: np.ndarray
    held_out_step: np.ndarray
    held_out_loss: np.ndarray


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
        theta: the best on held-out data where there is any, the start included; else the last one, or the latest whose loss was
            finite where the fit diverged.
        history: what was measured.
        status: why the fit ended, not how well (`best_step`): "finished" after all steps, "stopped early" by `patience`,
            "diverged".

    Example:
        >>> loss = lambda theta, stack, batch: jnp.square(theta - batch[1]).mean()
        >>> found = nm.fit(jnp.zeros(2), loss, None, [(None, jnp.ones(2))], optax.sgd(0.5), steps=2)
        >>> print(found.theta, found.status)
        [0.75 0.75] finished
        >>> found
        FitResult(finished after 2 steps, loss 1 -> 0.25)
        >>> uphill, data = optax.sgd(-0.5), [(None, jnp.ones(2))]
        >>> found = nm.fit(jnp.zeros(2), loss, None, data, uphill, steps=2, held_out=data)
        >>> found.best_step, found
        (0, FitResult(finished after 2 steps, held-out loss 1: nothing better than the start was found))
    """

    theta: PyTree
    history: History
    status: Status

    def __repr__(self) -> str:
        """How it went in a line: all numbers of theta would fill pages."""
        loss, _, held_out = self.history
        how = f", loss {loss[0]:.3g} -> {loss[-1]:.3g}" if len(loss) else ""
        if len(held_out):
            how = f", held-out loss {held_out[0]:.3g} -> {held_out[_lowest(held_out)]:.3g} at step {self.best_step}"
        if len(loss) and self.best_step == 0:
            how = f", held-out loss {held_out[0]:.3g}: nothing better than the start was found"
        return f"FitResult({self.status} after {len(loss)} step{'s' * (len(loss) != 1)}{how})"

    @property
    def best_step(self) -> int | None:
        """After how many updates theta was as it is here: 0 where nothing better than the start was found on held-out data.

        None without held-out data, where nothing judges.
        """
        _, steps, held_out = self.history
        return int(steps[_lowest(held_out)]) if len(held_out) else None


def _lowest(losses: np.ndarray) -> int:
    """Where the first of the lowest is, of those that are finite."""
    return int(np.where(np.isfinite(losses), losses, np.inf).argmin())


class Judge:
    """Held-out losses so far, and the best theta among them."""

    def __init__(self, run: Run, constants: Constants, held_out: Sequence[tuple]):
        self.run = dataclasses.replace(run, optimizer=UNUSED)  # else every optimizer compiles a judge of its own
        self.constants, self.held_out = constants, held_out
        self.evaluate, self.feed = run.layout.compiled(evaluate), Feed(run)
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.best: PyTree = None
        self.lowest = math.inf

    def __call__(self, step: int, learned: PyTree) -> None:
        """Judge theta after a step."""
        if not self.held_out:
            return
        found = [self.evaluate(self.run, learned, self.constants, self.feed(x), {}) for x in self.held_out]
        value = mean_over_batches(self.run.layout.take(found))
        if self.best is None or (math.isfinite(value) and value < self.lowest):  # one of -inf is an overflow
            self.lowest = value if math.isfinite(value) else math.inf
            self.best = jax.tree.map(jnp.array, learned)  # a copy: the step donates its state
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
        except Exception as error:  # whatever an objective of the user's own raises
            raise ValueError(f"the loss, on a batch of {kinds_of(batch)}, raised {first_line(error)}") from error


class Loop:
    """A fit under way: theta and what was measured of it."""

    def __init__(self, run: Run, theta: PyTree, stack: PyTree, held_out: Sequence[tuple]):
        self.run, self.layout = run, run.layout
        self.shapes: tuple[PyTree, PyTree] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), (theta, stack)
        )
        self.check = Checker(run.loss, theta, stack)
        learned, self.fixed = partition(theta, getattr(run.loss, "frozen", None))
        if not jax.tree.leaves(learned):
            raise ValueError("nothing to learn: theta has no floating-point leaves, or all are frozen")
        for batch in held_out:
            self.check(batch)
        learned = jax.tree.map(jnp.array, learned)  # a copy: the step donates its state
        good = None if held_out else jax.tree.map(jnp.array, learned)  # else the judge keeps the best
        self.state = self.layout.place(State(learned, run.optimizer.init(learned), jnp.array(True), good))
        self.constants = self.layout.place(Constants(self.fixed, stack))
        self.judge = Judge(run, self.constants, held_out)
        self.update, self.feed = self.layout.compiled(update, donated=(1,)), Feed(run)
        self.earlier, self.losses, self.recent = np.zeros(0, np.float32), list[Array](), Recent()
        self.status: Status | None = None

    def step(self, batch: tuple, random: dict[str, Array]) -> None:
        """One update."""
        self.check(batch)
        if not self.losses:
            check_step(self.run, *self.shapes, batch=batch)
            if isinstance(batch, tuple) and batch:
                warn_of_pixels(batch[0], stacklevel=3)
        self.state, value = self.update(self.run, self.state, self.constants, self.feed(batch), random)
        self.losses.append(value)
        self.recent.add(len(self.earlier) + len(self.losses), batch)

    def look(self, step: int, steps: int, progress: Callable[[int, float], Any] | None, plateau: Plateau | None) -> None:
        """Report, judge, and say whether it is over."""
        if not bool(self.layout.take(self.state.healthy)):
            self.status = "diverged"
        else:
            self.recent.clear()
            self.judge(step, self.state.learned)
            if plateau is not None:
                self.heed(plateau(self.judge.losses), last=step == steps)
        if (judged := getattr(progress, "judged", None)) is not None and self.status != "diverged" and self.judge.losses:
            judged(step, self.judge.losses[-1])
        self.tell(step, progress)

    def heed(self, advice: Advice, *, last: bool) -> None:
        """Cut the rate, or stop before the last step."""
        if isinstance(self.state.optimizer, Slowed):
            self.state = self.state._replace(optimizer=self.state.optimizer.at(advice.factor))
        if advice.stop and not last:
            self.status = "stopped early"

    def tell(self, step: int, progress: Callable[[int, float], Any] | None) -> None:
        """Report the latest training loss."""
        if progress is not None:
            progress(step, float(self.layout.take(self.losses[-1])))

    def result(self) -> FitResult:
        """Theta, joined with what was not learned, and the history."""
        best = self.layout.take(self.judge.best if self.judge.held_out else self.state.learned)
        history = History(self._losses(), np.array(self.judge.steps), np.array(self.judge.losses, np.float32))
        return FitResult(joined(best, self.fixed), _until_bad(history), self.status or "finished")

    def saved(self, source: Source) -> Saved:
        """Everything that `resume` needs."""
        judge = self.judge
        arrays = {**self._arrays(), "losses": self._losses()}
        numbers = {"steps": judge.steps, "held_out": judge.losses, "lowest": judge.lowest}
        return Saved(arrays, {**numbers, "position": source.position, "status": self.status})

    def resume(self, saver: Saver, source: Source) -> int:
        """Go on from the newest checkpoint; the number of steps that it has."""
        found = saver.found(self._arrays(first=True))
        if found is None:
            return 0
        step, (arrays, numbers) = found
        self.state = self.layout.place(State(**arrays["state"]))
        self.earlier, judge = np.asarray(arrays["losses"]), self.judge
        judge.steps, judge.losses = numbers["steps"], numbers["held_out"]
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
