"""One task for one seed: its base, its experts, what methods may know of them, and how good a network is."""

import abc
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import npmerge as nm
from alignment.graph import Graph, PyTree
from experiments.compositional.cells import Cells, Part, joined
from experiments.compositional.grid import Cell
from experiments.compositional.methods import Operator, ways
from experiments.compositional.networks import (
    FEATURES,
    TEMPERATURE,
    Asked,
    Both,
    CrossEntropies,
    Judge,
    Pretraining,
    Scores,
    judged,
    moved,
)
from experiments.compositional.settings import Task
from experiments.compositional.texts import DRAWS, SHARE, hidden
from experiments.run import check_settings
from experiments.together import Change, Kept, Loss, Regime, side_by_side, train_together, unchanged
from npmerge import checkpoint
from npmerge.models import Bert, Config, Mlp, Vit, build

STATISTICS = (nm.DiagonalFisher("empirical"), nm.KroneckerFactors("empirical"), nm.InputGram(), nm.Examples())
"""Fisher information on the labels of the data, as the program of Tam et al. has it."""


MEASURED = 128
"""Examples of each expert for statistics, where the largest part has as many; all have more where the smallest part has."""


class Case(abc.ABC):
    """A task, its data for one seed, and its networks.

    Args:
        task: what it is of.
        cells: the data.
        seed: of the networks.
        folder: where trained networks are kept.
    """

    operator: ClassVar[Operator] = "kronecker"
    available: ClassVar[tuple[Any, ...]] = STATISTICS
    classified: ClassVar[bool] = True

    def __init__(self, task: Task, cells: Cells, seed: int, folder: Path):
        self.task, self.cells, self.seed, self.folder = task, cells, seed, folder
        self.held_in: list[Cell] = list(cells.held_in)
        self.generalisation = list(cells.grid.generalisation(self.held_in))

    # -------------------------------------------------------------------------------------------------- what a setting says

    @property
    @abc.abstractmethod
    def apply(self) -> Callable[[PyTree, PyTree], Array]:
        """The network. Equal for equal networks, so that nothing is compiled twice."""

    @property
    @abc.abstractmethod
    def loss(self) -> Loss:
        """That of training, for each example."""

    @property
    @abc.abstractmethod
    def objective(self) -> nm.Objective:
        """The same, for what learns from a merge."""

    @abc.abstractmethod
    def initial(self) -> PyTree:
        """The untrained network."""

    @abc.abstractmethod
    def validated(self, variables: PyTree) -> Scores:
        """In held-in cells, on the data that every choice is made by."""

    @abc.abstractmethod
    def tested(self, variables: PyTree) -> Scores:
        """In all cells, and in the domain of the base."""

    @abc.abstractmethod
    def judging(self) -> Callable[[PyTree], Any]:
        """The function of the variables that `validated` computes, for its operations."""

    @property
    def change(self) -> Change:
        """What is changed in batches of training."""
        return unchanged

    def pair(self, part: Part) -> tuple[PyTree, Any]:
        """Inputs and targets of a part as the loss takes them."""
        return part.inputs, part.targets

    def fine_tuned(self, parts: Sequence[tuple[Part, Part]], regime: Regime, seed: int) -> Kept:
        """Networks trained from the base, each on a part, its moment chosen by another."""
        return self.trained(self.base, parts, regime, seed)

    # ------------------------------------------------------------------------------------------------------------- networks

    def prepare(self) -> None:
        """Have all networks: trained, or read from the folder."""
        _ = self.base, self.experts, self.multitask

    def trained(self, start: PyTree, parts: Sequence[tuple[Part, Part]], regime: Regime, seed: int) -> Kept:
        """Networks trained from one start, each on a part, its moment chosen by another."""
        train, validation = (side_by_side([self.pair(x) for x in side]) for side in zip(*parts, strict=True))
        return train_together(start, self.loss, train, validation, regime, seed=seed, change=self.change)

    @functools.cached_property
    def base(self) -> PyTree:
        """What the others start from."""
        return self.kept("base", self.pretrained)[0]

    def pretrained(self) -> Kept:
        """The base, trained."""
        return self.trained(self.initial(), [(self.cells.base, self.cells.base_validation)], self.task.base, self.seed)

    @functools.cached_property
    def experts(self) -> list[PyTree]:
        """A fine-tune for each held-in cell."""
        parts = [(x.train, x.validation) for x in self.cells.held_in.values()]
        return self.kept("experts", lambda: self.fine_tuned(parts, self.task.fine_tuning, 1000 + self.seed))

    @functools.cached_property
    def multitask(self) -> PyTree:
        """One fine-tune on the data of all held-in cells, with as many steps as all experts together."""
        parts = list(self.cells.held_in.values())
        pair = (joined([x.train for x in parts]), joined([x.validation for x in parts]))
        regime = self.task.fine_tuning
        regime = dataclasses.replace(regime, steps=regime.steps * len(parts))
        return self.kept("multitask", lambda: self.fine_tuned([pair], regime, 2000 + self.seed))[0]

    def moments(self, name: str) -> list[int]:
        """The moments at which networks were kept: "base", "experts" or "multitask", which must be there."""
        return checkpoint.load_record(self._path(name))["moments"]

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.task.name}-{self.seed}-{name}.safetensors"

    def kept(self, name: str, train: Callable[[], Kept]) -> list[PyTree]:
        """Networks of the folder, trained if they are not there. Raises ValueError for those of other settings."""
        path = self._path(name)
        task = dataclasses.asdict(self.task)
        made = {"task": {k: task[k] for k in DECISIVE}, "data": self.cells.found, "constants": CONSTANTS}
        if path.exists():
            check_settings(checkpoint.load_record(path).get("settings", {}), made, path)
            found = checkpoint.load(path)
            return [jax.tree.map(jnp.asarray, found[str(k)]) for k in range(len(found))]
        began = time.perf_counter()
        found = jax.block_until_ready(train())
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"seconds": round(time.perf_counter() - began, 1), "settings": made, "moments": found.moments}
        checkpoint.save(path, {str(k): network for k, network in enumerate(found.each)}, record)
        return found.each

    # ---------------------------------------------------------------------------------------------------- what methods know

    @functools.cached_property
    def graph(self) -> Graph:
        """Which units are alike in the networks."""
        return nm.trace(self.apply, self.base, self.measured[0][0])

    @functools.cached_property
    def measured(self) -> list[tuple[PyTree, Any]]:
        """For each expert a batch of its own data for statistics, as large for all.

        Small parts are filled up by their own examples: cut to the smallest, larger ones would be worth as little.
        """
        parts = [x.learning for x in self.cells.held_in.values()]
        sizes = list(map(len, parts))
        count = max(min(sizes), min(MEASURED, max(sizes)))
        return [self.pair(part.filled(count)) for part in parts]

    @functools.cached_property
    def known(self) -> Mapping[type, Any]:
        """The statistics of every expert on its own data."""
        return self.statistics(self.experts, self.measured, self.kinds)

    @functools.cached_property
    def kinds(self) -> tuple[Any, ...]:
        """The statistics that the methods of the task need."""
        there = ways(self.operator)
        needed = {kind for name in self.task.methods if name in there for kind in there[name].make().needs}
        return tuple(kind for kind in self.available if type(kind) in needed)

    def statistics(
        self, models: Sequence[PyTree], batches: Sequence[tuple[PyTree, Any]], kinds: Sequence[Any]
    ) -> Mapping[type, Any]:
        """Of some models, each on a batch of its own."""
        return nm.collect_each(self.apply, self.graph, models, [[batch] for batch in batches], kinds)

    def cost_of(self, kind: Any) -> nm.cost.Cost:
        """What a statistic of one expert costs."""
        return nm.cost.collected(self.apply, self.graph, self.experts[:1], self.measured[:1], [kind])[1]

    def stack(self, order: Sequence[int]) -> nm.Stack:
        """Some of the experts, and the base."""
        return nm.stack_models([self.experts[k] for k in order], self.base)

    def stats(self, order: Sequence[int], needs: Sequence[type]) -> dict[type, Any]:
        """The statistics of some of the experts."""
        if not needs:
            return {}
        if list(order) == list(range(len(self.experts))):
            return {kind: self.known[kind] for kind in needs}
        places = np.array(order)
        return {kind: jax.tree.map(lambda x: x[places], self.known[kind]) for kind in needs}


DECISIVE = (
    "setting", "data", "base_domain", "width", "layers", "patch", "sizes", "base", "fine_tuning", "rank", "classifier", "side",
    "vocabulary", "length",
)  # fmt: skip
"""The fields of a task that decide its networks."""

CONSTANTS = {"features": FEATURES, "temperature": TEMPERATURE, "hidden": SHARE, "draws": DRAWS}
"""What decides them besides."""


class Classified(Case):
    """A task whose networks tell classes, of images or of sentences."""

    def __init__(self, task: Task, cells: Cells, seed: int, folder: Path, *, config: Config, classes: tuple[int, ...]):
        super().__init__(task, cells, seed, folder)
        self.config = config
        self.asked = Asked(build(config).apply, classes)
        self.validation = Judge({cell: x.validation for cell, x in cells.held_in.items()})
        self.test = Judge({**cells.test, **cells.home})

    @property
    def change(self) -> Change:
        """Images are shifted, where they are no vectors; tokens are hidden."""
        if self.task.setting == "text":
            return hidden
        return unchanged if isinstance(self.config, Mlp) else moved

    def pretrained(self) -> Kept:
        """On classes, and on what belongs together."""
        train, validation = (side_by_side([self.pair(part)]) for part in (self.cells.base, self.cells.base_validation))
        loss, change = Pretraining(self.apply), Both(self.change)
        return train_together(self.initial(), loss, train, validation, self.task.base, seed=self.seed, change=change)

    @property
    def apply(self) -> Asked:
        """With the classes of other categories masked."""
        return self.asked

    @property
    def loss(self) -> CrossEntropies:
        """Cross entropy."""
        return CrossEntropies(self.apply)

    @property
    def objective(self) -> nm.Objective:
        """Cross entropy."""
        return nm.CrossEntropy()

    def initial(self) -> PyTree:
        """By the seed."""
        return build(self.config, seed=self.seed).variables

    def validated(self, variables: PyTree) -> Scores:
        """On validation examples."""
        return self.validation(self.apply, variables)

    def tested(self, variables: PyTree) -> Scores:
        """On test examples."""
        return self.test(self.apply, variables)

    def judging(self) -> Callable[[PyTree], Any]:
        """On validation examples."""
        return lambda variables: judged(self.apply, variables, self.validation.chunks)


def image_network(task: Task, shape: tuple[int, ...], classes: int) -> Config:
    """A vision transformer, or a perceptron where images are vectors."""
    if len(shape) == 1:
        return Mlp(shape[0], (task.width,) * task.layers, classes)
    side, channels = shape[0], shape[-1]
    return Vit(task.patch, task.width, task.layers, max(task.width // 16, 1), 2 * task.width, classes, side, channels)


def text_network(task: Task, vocabulary: int, length: int, classes: int) -> Config:
    """An encoder of the shape of BERT."""
    return Bert(vocabulary, task.width, task.layers, max(task.width // 16, 1), 2 * task.width, length, classes)
