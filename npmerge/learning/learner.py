"""The `learn:` block: coefficients that start at the recipe's method and descend on its objective."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignment.graph import PyTree, flatten
from npmerge.base import LinearMerge
from npmerge.batches import shuffled
from npmerge.evaluate import Metrics, evaluate
from npmerge.fit import Checkpoints, FitResult, fit
from npmerge.fit_checkpoints import fingerprint
from npmerge.learned import Learned
from npmerge.learning.aligning import whole
from npmerge.learning.architectures import Architecture
from npmerge.learning.data import Examples, Parts
from npmerge.learning.values import Values
from npmerge.normalisation import reset_statistics
from npmerge.objectives import weight_space
from npmerge.recipe.blocks import Learn
from npmerge.recipe.schema import Recipe
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
        rows: accuracy and loss by name, of what was merged, the start and the result; empty without labels.
        measured_on: which examples those are of.
    """

    variables: PyTree
    result: FitResult
    coefficients: dict[str, np.ndarray]
    rows: dict[str, Metrics]
    measured_on: str


@dataclass(frozen=True, eq=False)
class Learner:
    """One fit of a recipe.

    Attributes:
        recipe: for the lines of errors.
        block: its `learn:`.
        network: as functions.
        stack: the networks, aligned if they are to be, and their base.
        start: the closed form of the recipe's method.
        values: what the block names.
        parts: of the data.
    """

    recipe: Recipe
    block: Learn
    network: Architecture
    stack: Stack
    start: LinearMerge
    values: Values
    parts: Parts

    def __post_init__(self) -> None:
        if self.block.objective.name == "cross_entropy" and self.parts.train.targets is None:
            message = f"cross_entropy needs labels: {self.parts.train.name} has no {self.block.data.labels!r}"
            raise self.recipe.error(("learn", "data"), message)

    @property
    def merge(self) -> Learned:
        """What is learned."""
        return Learned(self.start, self.values.granularity, self.values.constraint)

    def theta(self) -> PyTree:
        """Where it starts. Raises ValueError for a start that granularity or constraint do not hold (the line)."""
        try:
            return self.merge.init(self.stack)
        except ValueError as error:
            raise self.recipe.error(("learn",), str(error)) from None

    def learnt(self, names: Sequence[str], progress: Any, checkpoints: Checkpoints | None) -> Learnt:
        """Learn and measure.

        Args:
            names: of the networks.
            progress: told of steps, as `fit` does.
            checkpoints: where the fit is saved on its way.
        """
        block, theta = self.block, self.theta()
        loss = weight_space(self.merge, self.network.forward, self.values.objective)
        train = self.parts.train
        try:
            result = fit(
                theta,
                loss,
                self.stack,
                shuffled(train.inputs, train.filled, block.batch_size, seed=block.seed),
                self.values.optimizer,
                steps=block.steps,
                held_out=self.held_out,
                every=block.every,
                patience=block.patience,
                progress=progress,
                devices=block.devices,
                parallel=block.parallel,
                shard=block.shard,
                accumulate=block.accumulate,
                checkpoints=checkpoints,
            )
        except ValueError as error:
            raise self.recipe.error(("learn",), str(error)) from None
        merged = {"start": self.finished(theta), "learned": self.finished(result.theta)}
        base = {} if self.stack.base is None else {"base": self.stack.base}
        rows = self._measured(base | dict(zip(names, self.stack.models(), strict=True)) | merged)
        return Learnt(merged["learned"], result, self._coefficients(result.theta), rows, self._tested.name)

    @property
    def held_out(self) -> list[tuple]:
        """The batches on which theta is judged."""
        if self.parts.held_out is None:
            return []
        batches = self.parts.held_out.batches(self.block.batch_size)
        return batches if self.network.train_apply is None else whole(batches)

    def finished(self, theta: PyTree) -> PyTree:
        """The merged network, its running statistics estimated from what is learned from."""
        variables = self.merge.apply(theta, self.stack)
        if self.network.train_apply is None:
            return variables
        batches = whole(self.parts.train.batches(RESET))[:MOST]
        return reset_statistics(self.network.train_apply, variables, batches)

    @property
    def _tested(self) -> Examples:
        return self.parts.held_out or self.parts.train

    def _measured(self, networks: Mapping[str, PyTree]) -> dict[str, Metrics]:
        if self._tested.targets is None:
            return {}
        batches = self._tested.batches(self.block.batch_size if self.network.train_apply is None else RESET)
        return {name: evaluate(self.network.apply, variables, batches) for name, variables in networks.items()}

    def _coefficients(self, theta: PyTree) -> dict[str, np.ndarray]:
        """By group, from the inputs of the network to its outputs."""
        group = self.values.granularity.group
        order = dict.fromkeys(group(path) for path in self.network.in_order(flatten(self.stack.params)))
        return {x: np.asarray(self.values.constraint.forward(theta[x])) for x in order if x in theta}

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
        train, held_out = self.parts
        data = [train.inputs, train.filled, *([] if held_out is None else [held_out.inputs, held_out.filled])]
        given = self.block.model_dump(exclude={"checkpoints"})
        return repr((given, fingerprint(data), fingerprint(self.stack.params)))
