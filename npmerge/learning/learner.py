"""The `learn:` block: coefficients that start at the recipe's method and descend on its objective."""

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array

from alignment.graph import PyTree
from alignment.program import order_of_use
from npmerge.constraints import Constraint
from npmerge.fitting.checkpoints import fingerprint
from npmerge.fitting.fit import Checkpoints, FitResult
from npmerge.fitting.fit import quiet_fit as fit
from npmerge.learned import Learned
from npmerge.learning.architectures import Architecture
from npmerge.learning.data import whole
from npmerge.learning.goals import Goal
from npmerge.learning.hosts import batches_of_process, devices_of_job, held_out_of_process, on_every_process
from npmerge.learning.measuring import Measured, measured
from npmerge.learning.page import RESULT, START
from npmerge.learning.partly import PartlyLearned, latents_of
from npmerge.learning.places import inside
from npmerge.learning.shares import collapsed
from npmerge.learning.tasks import Tasks
from npmerge.normalisation import reset_statistics
from npmerge.objectives.base import value_over
from npmerge.recipe.blocks import Learn
from npmerge.recipe.schema import Recipe
from npmerge.reports.judgements import BASE
from npmerge.stack import Stack

RESET = 128
"""Examples of a batch in which statistics of BatchNorm are estimated anew, and networks that have them are evaluated."""

MOST = 64
"""Batches that they are estimated from at most."""

SAVED = 200
"""Steps between two savings where the recipe does not say."""


class Learnt(NamedTuple):
    """What became of a `learn:` block.

    Attributes:
        variables: of the merged network.
        result: of the fit.
        coefficients: of each group, (models, ...), in the shape of the granularity.
        measured: accuracy and loss of what was merged, the start and the result.
        warnings: of what was learned from.
    """

    variables: PyTree
    result: FitResult
    coefficients: dict[str, np.ndarray]
    measured: Measured
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Learner:
    """One fit of a recipe.

    Attributes:
        recipe: for the lines of errors.
        block: its `learn:`.
        network: as functions.
        stack: the networks, aligned if they are to be, and their base.
        merge: what is learned, from the closed form of the recipe's method on.
        optimizer: by which.
        goal: what is minimised.
        tasks: the data.
    """

    recipe: Recipe
    block: Learn
    network: Architecture
    stack: Stack
    merge: Learned | PartlyLearned
    optimizer: optax.GradientTransformation
    goal: Goal
    tasks: Tasks

    @property
    def learned(self) -> Learned:
        """The merge of the leaves that are learned."""
        return self.merge.learned if isinstance(self.merge, PartlyLearned) else self.merge

    def theta(self) -> PyTree:
        """Where it starts. Raises ValueError for a start that granularity or constraint do not hold (the line)."""
        with inside(self.recipe, ("learn",)):
            return self.merge.init(self.stack)

    def learnt(self, names: Sequence[str], progress: Any, checkpoints: Checkpoints | None) -> Learnt:
        """Learn and measure.

        Args:
            names: of the networks.
            progress: told of steps, as `fit` does.
            checkpoints: where the fit is saved on its way.
        """
        block, theta = self.block, self.theta()
        loss = self.goal.loss(self.merge, self.network.forward, theta)
        warned = self._warnings()
        with inside(self.recipe, ("learn",)):
            result = fit(
                theta,
                loss,
                self.stack,
                batches_of_process(self.tasks.batches(block.batch_size)),
                self.optimizer,
                steps=block.steps,
                held_out=held_out_of_process(self.held_out, loss),
                every=block.every,
                patience=block.patience,
                progress=progress,
                devices=devices_of_job(block.devices),
                parallel=block.parallel,
                shard=block.shard,
                accumulate=block.accumulate,
                checkpoints=checkpoints,
            )
            if len(losses := result.history.loss) and not np.isfinite(losses[0]):
                raise ValueError(f"the objective is {losses[0]} at the start: look at it and at its data; nothing was learned")
        result = result._replace(theta=on_every_process(result.theta))
        merged = {START: self.finished(theta), RESULT: self.finished(result.theta)}
        start, coefficients = self._coefficients(theta), self._coefficients(result.theta)
        warned = (*self._collapse(start, coefficients, names), *warned)
        return Learnt(merged[RESULT], result, coefficients, self._measured(names, merged), warned)

    def _measured(self, names: Sequence[str], merged: Mapping[str, PyTree]) -> Measured:
        """Accuracy and loss of all networks; where none can be told, the objective on what is held out."""
        size = self.block.batch_size if self.network.train_apply is None else RESET
        found = measured(self.network.apply, self._networks(names, merged), self.tasks.measured, size)
        if found.rows or not self.tasks.has_held_out:
            return found
        judge = functools.partial(value_over, self.goal.objective, self.network.forward)
        rows = {x: judge(variables, self.stack, self.held_out) for x, variables in self._networks(names, merged)}
        return found._replace(judged=rows)

    def _networks(self, names: Sequence[str], merged: Mapping[str, PyTree]) -> Iterator[tuple[str, PyTree]]:
        """What was merged, each copied from the stack only when it is asked for, and what it was merged to."""
        if self.stack.base is not None:
            yield BASE, self.stack.base
        for k, name in enumerate(names):
            yield (
                f"model {name}" if name in (BASE, START, RESULT) else name,
                jax.tree.map(lambda x, k=k: x[k], self.stack.params),
            )
        yield from merged.items()

    @property
    def held_out(self) -> list[tuple]:
        """The batches on which theta is judged."""
        batches = self.tasks.held_out(self.block.batch_size)
        return batches if self.network.train_apply is None or self.tasks.joint else whole(batches)

    def finished(self, theta: PyTree) -> PyTree:
        """The merged network, its running statistics estimated from what is learned from."""
        variables = _merged(self.merge, theta, self.stack)
        if self.network.train_apply is None:
            return variables
        return reset_statistics(self.network.train_apply, variables, whole(self.tasks.mixed(RESET, MOST + 1))[:MOST])

    def _collapse(
        self, start: dict[str, np.ndarray], coefficients: dict[str, np.ndarray], names: Sequence[str]
    ) -> tuple[str, ...]:
        """Whether what was learned from one task alone is one of the networks, rather than a merge."""
        found = None if self.tasks.joint else collapsed(start, coefficients)
        if found is None:
            return ()
        model, share = found
        return (
            f"the mean share of {names[model]} has become {share:.2f}: what is learned from one task alone can collapse onto a "
            "model that solves it; give data of every model (data: a list), or equal_shares beside the objective",
        )

    def _warnings(self) -> tuple[str, ...]:
        """What is to be said of the data and the objective."""
        found = []
        if self.goal.idle:
            named = ", ".join(self.goal.idle)
            found.append(f"{named} teaches nothing: teacher: own is the model that a task names, and none names it")
        if self.goal.objective.transductive and not self.tasks.has_held_out:
            found.append("learned on the inputs that the networks are measured on: the result is transductive")
        return tuple(found)

    def _coefficients(self, theta: PyTree) -> dict[str, np.ndarray]:
        """By group, from the inputs of the network to its outputs."""
        group, latents = self.learned.granularity.group, latents_of(self.merge, theta)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.stack.params)
        used = order_of_use(self.network.apply, one, self.tasks.train[0].inputs[:2])
        order = dict.fromkeys(map(group, used))
        return {x: np.asarray(_forward(self.learned.constraint, latents[x])) for x in order if x in latents}

    def checkpoints(self, folder: Path, *, wanted: bool) -> Checkpoints | None:
        """Where the fit is saved: a folder that another block, other data or other networks do not share.

        Args:
            folder: in which that folder lies.
            wanted: whether it is saved even if the recipe does not say.
        """
        given = self.block.checkpoints
        if given is None and not wanted:
            return None
        name = f"fit-{zlib.crc32(self._identity().encode()):08x}"
        return Checkpoints(folder / name, *((SAVED, None) if given is None else (given.steps, given.minutes)))

    def _identity(self) -> str:
        """What decides on the fit besides theta: the block, data, weights."""
        data = [(x.inputs, x.filled) for part in self.tasks.parts for x in part if x is not None]
        given = self.block.model_dump(exclude={"checkpoints"})
        return repr((given, fingerprint(data), fingerprint(self.stack.params)))


@functools.partial(jax.jit, static_argnums=0)
def _merged(merge: Learned | PartlyLearned, theta: PyTree, stack: Stack) -> PyTree:
    """Compiled once for the start and the result."""
    return merge.apply(theta, stack)


@functools.partial(jax.jit, static_argnums=0)
def _forward(constraint: Constraint, latent: Array) -> Array:
    """One group at a time, since all coefficients together are as large as all models."""
    return constraint.forward(latent)
