"""What a `learn:` block will take, from shapes alone: a step is compiled as `fit` does, and run on zeros to time it."""

import functools
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignment.graph import PyTree
from npmerge.commands.text import counted
from npmerge.learned import Learned
from npmerge.learning.run import Blocks
from npmerge.learning.starts import start_of
from npmerge.learning.values import values_of
from npmerge.models import abstract
from npmerge.objectives import weight_space
from npmerge.recipe.blocks import Learn
from npmerge.sharding import AsGiven
from npmerge.stack import Stack
from npmerge.stream.sizes import duration, size
from npmerge.updates import Run, State, update

LARGEST = 2 * 10**9
"""Bytes up to which a step is run to be timed."""


class LearnPrediction(NamedTuple):
    """What a fit will take on one device that holds all of it.

    Attributes:
        coefficients: that are learned.
        memory: bytes of a step, as XLA plans them: models, theta, optimiser, batch and what lies between.
        flops: of a step, as XLA counts them.
        seconds: of all steps on this machine, compilation and measurements not counted; None for steps that are not run here.
    """

    coefficients: int
    memory: int
    flops: float
    seconds: float | None


def predicted_fit(blocks: Blocks, learn: Learn) -> LearnPrediction | None:
    """What a block will take; None for a network of the user's own, whose variables are not known from headers."""
    if blocks.network.config is None:
        return None
    parts, stack = blocks.parts(learn), _stack(blocks)
    values = values_of(blocks.recipe, learn)
    start = start_of(blocks.recipe, blocks.plan, blocks.paths)
    merge = Learned(start, values.granularity, values.constraint)
    rows = 1 if learn.constraint.name == "simplex" and stack.size == 2 else stack.size
    shapes = values.granularity.shapes(stack.params).items()
    theta = {name: jax.ShapeDtypeStruct((rows, *shape), jnp.float32) for name, shape in shapes}
    batch = tuple(
        jax.ShapeDtypeStruct((learn.batch_size, *x.shape[1:]), x.dtype) for x in (parts.train.inputs, parts.train.filled)
    )
    optimizer = values.optimizer
    healthy: Any = jax.ShapeDtypeStruct((), jnp.bool_)
    state = State(theta, jax.eval_shape(optimizer.init, theta), healthy)
    loss = weight_space(merge, blocks.network.forward, values.objective)
    step = functools.partial(update, loss, optimizer, Run(AsGiven()))
    fixed = jax.tree.map(lambda x: None, theta)
    compiled = jax.jit(step, donate_argnums=0).lower(state, fixed, stack, batch, {}).compile()
    memory, analysis = _memory(compiled), compiled.cost_analysis() or {}
    seconds = _timed(compiled, (state, fixed, stack, batch, {})) * learn.steps if memory < LARGEST else None
    count = sum(math.prod(x.shape) for x in theta.values())
    return LearnPrediction(count, memory, float(analysis.get("flops", math.nan)), seconds)


def told(learn: Learn, found: LearnPrediction | None) -> list[str]:
    """Lines for the terminal."""
    what = f"{learn.objective.name}, {learn.granularity.name}, {learn.constraint.name}"
    first = f"learn: {what}, {learn.steps} steps of {learn.batch_size}"
    if found is None:
        return [first, "a network of your own: what it takes is not known from headers"]
    seconds = (
        "not timed" if found.seconds is None else f"{duration(found.seconds)} here, compilation and measurements not counted"
    )
    return [
        first,
        f"{counted(found.coefficients)} coefficients to learn; a step holds {size(found.memory)} and takes "
        f"{counted(found.flops)}FLOP; {learn.steps} steps: {seconds}",
    ]


def _stack(blocks: Blocks) -> Stack:
    """The models as shapes."""
    assert blocks.network.config is not None
    one: PyTree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), abstract(blocks.network.config).variables)
    count = len(blocks.members.models)
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), one)
    return Stack(many, one if blocks.members.base is not None else None)


def _memory(compiled: Any) -> int:
    found = compiled.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return int(held - found.alias_size_in_bytes)


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
