"""The Optax loop: descend on theta, keep the best, never lose it."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import optax
from jaxtyping import Array

from alignment.checks import check_count, check_key, kind_of
from alignment.graph import PyTree
from npmerge.base import Merge
from npmerge.batches import measured
from npmerge.fitting.checkpoints import Checkpoints, Saver
from npmerge.fitting.divergence import DivergedWarning, said_of
from npmerge.fitting.loop import FitResult, History, Loop
from npmerge.fitting.plateau import Plateau
from npmerge.fitting.source import Source
from npmerge.fitting.updates import Run
from npmerge.objectives.base import Loss, Objective
from npmerge.sharding import Devices, layout_of
from npmerge.stack import Stack


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
    patience: int | Plateau | None = None,
    progress: Callable[[int, float], Any] | None = None,
    key: Array | None = None,
    devices: Devices = None,
    parallel: Literal["jit", "pmap"] = "jit",
    shard: Literal["features"] | None = None,
    accumulate: int = 1,
    checkpoints: Checkpoints | Path | str | None = None,
) -> FitResult:
    """Minimise `loss(theta, stack, batch)` over the floating-point leaves of theta.

    Pass the same `loss` and `optimizer` objects again to reuse the compiled step. The given theta is not changed. The first
    step is compiled, which takes some seconds; nothing is said on the way unless `progress` says it.

    Args:
        theta: where to start; integer leaves (the permutations of an alignment) stay as they are.
        loss: for example `weight_space(merge, apply, objective)`; any function of (theta, stack, batch).
        stack: the models, or what else the loss takes besides; passed on as it is, None if it needs none.
        batches: `(inputs, targets)` tuples: a list or tuple is cycled, an iterator must last for all steps. An iterator
            (`shuffled`) goes on where it is: give each of the fits that are compared its own, of the same seed.
        optimizer: an Optax transformation.
        steps: number of updates; 0 returns theta as it is.
        held_out: batches on which theta is judged before the first step and every `every` steps: the best one is
            returned, whose loss on them is never above that of the start. Training batches in a list may stand here, too.
        every: steps between judgements, checks for divergence and calls of `progress`.
        patience: stop after so many judgements in a row without a new best; a `Plateau` cuts the rate before that.
        progress: called with the step and the latest training loss after the first step, which has been compiled, and every
            `every` steps, as `lambda step, loss: print(f"step {step}: {loss:.3g}")` can be; its method `judged`, if it has one,
            just before that with the step and the held-out loss.
        key: randomness for a loss that draws at random (`along_line`): it is called with `key=`, another one in each step. On
            held-out batches it is called without, and must then be deterministic.
        devices: among which batches are divided by examples, or how many; None for JAX's own rule, where the arrays are. With
            several processes (`jax.distributed`) all of them call this with `jax.devices()`, each with its own examples, as
            many as the others. Batches that do not divide evenly are filled up, and a mask leaves that out of the loss.
        parallel: "jit" over a mesh, or "pmap", where devices None are all.
        shard: "features" divides theta, the optimiser's state and the models among the devices too; under jit only.
        accumulate: batches go through the network in so many parts one after another, in a part of the memory.
        checkpoints: where the fit is saved on its way, or a folder for the defaults; the same call with the same folder goes on
            from there, to the same theta bit for bit. Theta, models, loss, held-out batches and a list of training batches must
            be the same, which is checked, and so must the optimizer and what iterators give, which is not; devices may be
            others. Iterators are asked for their position (`get_state`, `set_state`), others are read past what was used.

    Raises:
        ValueError: nothing to learn in theta, data that end early (the step is named), labels out of range, negative steps,
            arguments in another order, a merge in the place of its theta, an objective in that of a loss, an optimizer that is
            none, more devices than there are, batches that do not divide where the loss takes no mask, checkpoints of another
            fit.

    Warns:
        UserWarning: where a merge is learned on the running statistics of the models' average (`weight_space`).
        UserWarning: where a loss, gradient or update is not finite (the step, and inputs that are not finite themselves). That
            stops the run with status "diverged"; without held-out data theta is then the latest whose loss was finite.

    Example:
        >>> apply = lambda v, x: x @ v["w"]
        >>> stack = nm.stack_models([{"w": jnp.array([[1.0, 0.0], [0.0, 0.0]])}, {"w": jnp.array([[0.0, 0.0], [0.0, 1.0]])}])
        >>> merge, batches = nm.np_merge(), [(jnp.eye(2), np.array([0, 1]))]
        >>> loss = nm.weight_space(merge, apply, nm.CrossEntropy())
        >>> found = nm.fit(merge.init(stack), loss, stack, batches, optax.adam(0.5), steps=50)
        >>> print(merge(stack)["w"].ravel(), merge.apply(found.theta, stack)["w"].ravel().round(1))
        [0.5 0.  0.  0.5] [1. 0. 0. 1.]
    """
    if not callable(loss) or isinstance(batches, Stack | Mapping) or not isinstance(batches, Iterable):
        got = ", ".join(map(kind_of, (theta, loss, stack, batches, optimizer)))
        raise ValueError(f"fit takes (theta, loss, stack, batches, optimizer), got ({got})")
    _check_learned(theta, loss)
    _check_arguments(optimizer, steps, every, patience, held_out)
    _check_progress(progress)
    check_key(key)
    check_count("accumulate", accumulate)
    plateau = patience if patience is None or isinstance(patience, Plateau) else Plateau(patience)
    slowed = optimizer if plateau is None else plateau.slowed(optimizer)
    run = Run(loss, slowed, layout_of(devices, parallel, shard), accumulate)
    judged_on = measured(held_out, masks=getattr(loss, "masks", False), each=getattr(loss, "map_batches", None))
    loop = Loop(run, theta, stack, list(judged_on))
    source = Source(batches, steps)
    folder = Checkpoints(checkpoints) if isinstance(checkpoints, str | Path) else checkpoints
    saver = None if folder is None else Saver(folder, (theta, stack), loss, (loop.judge.held_out, source.batches))
    try:
        done = 0 if saver is None else loop.resume(saver, source)
        if done > steps:
            raise ValueError(f"the checkpoints have {done} steps, {steps} were asked for: name another folder")
        if not done:
            loop.judge(0, loop.state.learned)
        for step in range(done + 1, steps + 1):
            if loop.status:
                break
            loop.step(next(source), _at_step(key, step))
            judged = step % every == 0 or step == steps
            if judged:
                loop.look(step, steps, progress, plateau)
            elif step == done + 1:
                loop.tell(step, progress)
            if saver is not None and (saver.is_due(step, judged=judged) or loop.status or step == steps):
                saver.save(step, loop.saved(source))
    finally:
        if saver is not None:
            saver.close()
    return _told(loop, every)


def _told(loop: Loop, every: int) -> FitResult:
    """The result, with a warning where the fit diverged."""
    result = loop.result()
    if result.status == "diverged":
        warnings.warn(said_of(result.history.loss, loop.recent, every), DivergedWarning, stacklevel=3)
    return result


@contextlib.contextmanager
def _without_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergedWarning)
        yield


quiet_fit = _without_warning()(fit)
"""`fit` for callers that say themselves that it diverged."""


def _check_learned(theta: Any, loss: Any) -> None:
    if isinstance(theta, Merge):
        raise ValueError(f"theta is what a merge starts from: got {kind_of(theta)}, pass merge.init(stack)")
    if isinstance(loss, Objective):
        remedy = "weight_space(merge, apply, objective) or fine_tuning(apply, objective)"
        raise ValueError(f"loss is a function of (theta, stack, batch): got the objective {kind_of(loss)}, pass {remedy}")


def _check_arguments(optimizer: Any, steps: int, every: int, patience: Any, held_out: Iterable[tuple]) -> None:
    check_count("steps", steps, 0)
    check_count("every", every)
    if patience is not None and not isinstance(patience, Plateau):
        check_count("patience", patience)
    if patience is not None and not held_out:
        raise ValueError("patience needs held-out data to judge by: got none")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer must be an Optax transformation such as optax.adam(1e-2), got {type(optimizer).__name__}")


def _check_progress(progress: Any) -> None:
    if progress is not None and not callable(progress):
        raise ValueError(f"progress is called with the step and the loss, as print can be: got {progress!r}")


def _at_step(key: Array | None, step: int) -> dict[str, Array]:
    return {} if key is None else {"key": jax.random.fold_in(key, step)}


__all__ = ["Checkpoints", "FitResult", "History", "Loss", "fit"]
