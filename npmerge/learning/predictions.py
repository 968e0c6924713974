"""What a `learn:` block will take, from shapes alone: bytes by their closed form, operations and time by a step on zeros."""

import functools
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignment.graph import PyTree
from npmerge.fitting.memory import FitMemory
from npmerge.fitting.updates import Constants, Run, State, update
from npmerge.learning.blocks import Blocks
from npmerge.learning.foreseen import foreseen
from npmerge.learning.learner import MOST, RESET, Learner
from npmerge.learning.measuring import has_labels
from npmerge.learning.partly import latents_of
from npmerge.recipe.blocks import Learn
from npmerge.reports.numbers import counted, duration, plural, size
from npmerge.sharding import AsGiven

LARGEST = 2 * 10**9
"""Bytes up to which a step is run to be timed."""

FORWARD = 0.25
"""What judging a batch takes of what a step on it takes, to compile and to run: most of a step is its gradient."""

AROUND = 3.0
"""Seconds of importing networks, of putting them side by side and of the report's figures."""

PROGRAMS = 250_000_000
"""Bytes of the programs that XLA makes of a network, at most."""


class LearnPrediction(NamedTuple):
    """What a fit will take.

    Attributes:
        coefficients: that are learned.
        devices: among which it is divided.
        memory: bytes that each of them holds in a step, by what holds them (`npmerge.fitting.memory`).
        flops: of a step, as XLA counts them.
        compiling: seconds in which a step was compiled here.
        seconds: of all steps on one device of this machine, compilation and measurements not counted; None for steps that are
            too large to be run here.
        judging: seconds in which start, held-out data and result are judged, programs for that compiled; None likewise.
        warnings: a line each.
    """

    coefficients: int
    devices: int
    memory: FitMemory
    flops: float
    compiling: float
    seconds: float | None
    judging: float | None
    warnings: tuple[str, ...] = ()

    @property
    def lasting(self) -> float | None:
        """Seconds of everything but the merge of tensors."""
        known = self.seconds is not None and self.judging is not None
        return AROUND + self.compiling + self.seconds + self.judging if known else None  # type: ignore[operator]

    @property
    def held(self) -> int:
        """Bytes besides those of the merge of tensors: programs, files as they are read, and the larger of a step and judging.

        Then start, result and one of the models are there beside all models.
        """
        return PROGRAMS + self.memory.models + max(self.memory.total, self.memory.models + 3 * self.memory.merged)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        memory = {"total": self.memory.total, **self.memory._asdict()}
        return {**self._asdict(), "memory": memory}


def predicted_fit(blocks: Blocks, learn: Learn) -> LearnPrediction:
    """What a block will take: a step of it is compiled and, unless it is too large, run. Raises ValueError as `Blocks` does."""
    tasks, one = blocks.tasks(learn), blocks.network.shapes(blocks.members.models[0])
    fit = foreseen(blocks, learn, tasks)
    learner, theta, memory = fit.learner, fit.theta, fit.memory()
    begun = time.perf_counter()
    step, given = _compiled(learner, theta, fit.batch)
    compiling = time.perf_counter() - begun
    flops = float((step.cost_analysis() or {}).get("flops", math.nan))
    once = _timed(step, given) if memory.total < LARGEST else None
    seconds, judging = (None, None) if once is None else (once * learn.steps, FORWARD * _judging(learner, one, compiling, once))
    latents = sum(math.prod(x.shape) for x in latents_of(learner.merge, theta).values())
    each, warnings = memory.on(fit.devices, features=learn.shard is not None), fit.warnings(memory)
    return LearnPrediction(latents, fit.devices, each, flops, compiling, seconds, judging, warnings)


def told(learn: Learn, found: LearnPrediction) -> list[str]:
    """Lines for the terminal."""
    what = f"{learn.minimised}, {learn.granularity.name}, {learn.constraint.name}"
    first = f"learn: {what}, {plural(learn.steps, 'step')} of {learn.batch_size}"
    parts = ", ".join(f"{name} {size(value)}" for name, value in found.memory._asdict().items())
    time = "not timed: it is too large to be tried here"
    if found.seconds is not None and found.judging is not None:
        time = (
            f"{duration(found.seconds)} on one device here, after {duration(found.compiling)} of compiling; start, held-out "
            f"data and result are judged in {duration(found.judging)}"
        )
    return [
        f"{first}; {counted(found.coefficients)} coefficients to learn",
        f"each of {plural(found.devices, 'device')} holds {size(found.memory.total)} in a step: {parts}",
        f"a step takes {counted(found.flops)}FLOP; {plural(learn.steps, 'step')}: {time}",
        *(f"warning: {text}" for text in found.warnings),
    ]


def _judging(learner: Learner, one: PyTree, compiling: float, once: float) -> float:
    """Seconds of as many steps, and of compiling as many of their programs, as batches are judged, and programs for that."""
    block, tasks = learner.block, learner.tasks
    batches, measured = learner.held_out, tasks.measured.values()
    labelled = [x for x in measured if has_labels(learner.network.apply, one, x)]
    judgements = 1 + -(-block.steps // block.every)
    networks = learner.stack.size + 2 + (learner.stack.base is not None)
    judgements += 0 if labelled else networks  # those are judged by the objective, too
    examples = judgements * sum(_examples(x) for x in batches) + networks * sum(len(x.inputs) for x in labelled)
    if learner.network.train_apply is not None:  # statistics of the start and of the result
        examples += 2 * min(MOST * RESET, sum(len(x.inputs) for x in tasks.train))
    each = _examples(tasks.first(block.batch_size))
    programs = len(set(map(_examples, batches))) + len(labelled) + 1
    return programs * compiling + examples / each * once


def _examples(batch: tuple) -> int:
    """In a batch, of all tasks."""
    parts = batch if isinstance(batch[0], tuple) else (batch,)
    return sum(len(inputs) for inputs, _ in parts)


def _compiled(learner: Learner, theta: PyTree, batch: tuple) -> tuple[Any, tuple]:
    """The step on one device, and the shapes that it takes."""
    learned, fixed = (jax.tree.map(lambda x, k=k: x if _is_learned(x) == k else None, theta) for k in (True, False))
    healthy: Any = jax.ShapeDtypeStruct((), jnp.bool_)
    state = State(learned, jax.eval_shape(learner.optimizer.init, learned), healthy)
    loss = learner.goal.data_loss(learner.merge, learner.network.forward)
    step = functools.partial(update, Run(loss, learner.optimizer, AsGiven(), learner.block.accumulate))
    given: tuple = (state, Constants(fixed, learner.stack), batch, {})
    return jax.jit(step, donate_argnums=0).lower(*given).compile(), given


def _timed(compiled: Any, shapes: tuple) -> float:
    """Seconds of a step: the second of two, on zeros."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    took = 0.0
    for _ in range(2):
        arguments = jax.device_put(zeros)
        jax.block_until_ready(arguments)
        begun = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        took = time.perf_counter() - begun
    return took


def _is_learned(x: jax.ShapeDtypeStruct) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))
