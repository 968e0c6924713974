"""Merges that learn: NP Merge, AdaMerging, layer by layer from features; and their starts fine-tuned with the same budget."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import npmerge as nm
from alignment.graph import Graph, PyTree
from experiments.compositional.case import Case
from experiments.compositional.cells import joined
from experiments.compositional.grid import Cell
from experiments.compositional.networks import Scores
from experiments.compositional.settings import ADA_MERGING, ADA_SCALE, CONTROLS, FEATURES, NP_MERGE
from experiments.learning import Budget, search
from npmerge import cost
from npmerge.fitting.fit import Loss
from npmerge.memory import bytes_of
from npmerge.objectives.base import Apply
from npmerge.operations import operations


class Learnt(NamedTuple):
    """What came of learning.

    Attributes:
        variables: of the network.
        rate: that was chosen.
        scores: on validation data.
        tried: how many rates.
        flops: of all steps at all rates, and of looking at held-out data.
        kept: bytes of what is learned.
        step: what the gradient of one step costs.
        moved: whether it is another network than the one it started from, which is one of those that labels choose from.
    """

    variables: PyTree
    rate: float
    scores: Scores
    tried: int
    flops: float
    kept: int
    step: cost.Cost
    moved: bool


@dataclasses.dataclass(frozen=True)
class OwnFeatures:
    """The features of the expert of a cell, on examples of that cell alone: a batch is (inputs, places of the expert).

    One cell in each step, all in turn: a program with all experts in it would be as many times as large.
    """

    graph: Graph

    def __call__(self, apply: Apply, params: PyTree, stack: nm.Stack | None, batch: tuple) -> jax.Array:
        """The mean over the layers of what the features differ by."""
        assert stack is not None
        inputs, places = batch
        expert = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, places[0], keepdims=True), stack.params)
        return nm.FeatureMatching(self.graph, teacher=0)(apply, params, nm.Stack(expert), (inputs, None))


class Learner:
    """What the learned merges of one case share."""

    def __init__(self, case: Case):
        self.case, self.budget = case, Budget(case.task.learning.steps, case.task.learning.moments)
        self.stack = case.stack(range(len(case.experts)))
        own = OwnFeatures(case.graph)
        objectives = {NP_MERGE: case.objective, ADA_MERGING: nm.Entropy(), FEATURES: nm.UserObjective(own)}
        self.objectives: dict[str, nm.Objective] = objectives

    def learnt(self, method: str) -> Learnt:
        """A learned merge or a control: the best network on validation data of all rates, or the start if none is better.

        Every rate stops at the moment at which its own objective is lowest on the held-out examples; labels choose the rate.
        """
        merge, objective = self._merge(method)
        theta = merge.init(self.stack) if merge else start_of(method)(self.stack)
        loss: Loss = nm.weight_space(merge, self.case.apply, objective) if merge else nm.fine_tuning(self.case.apply, objective)
        variables = functools.partial(merge.apply, stack=self.stack) if merge else lambda theta: theta
        held_out, learning = self._held_out(objective), self.case.task.learning

        def learn(rate: float) -> tuple[PyTree, Scores]:
            tuned = functools.partial(self.budget.tuned, theta, loss, self.stack, held_out=held_out, rates=(rate,))
            network = variables(tuned(batches=functools.partial(self._batches, objective)).theta)
            return network, self.case.validated(network)

        def judge(tried: tuple[PyTree, Scores]) -> float:
            return badness(tried[1], self.case.held_in)

        searched = search(learning.rates(method), learn, judge, learning.further)
        start, count = variables(theta), len(searched.found)
        begun = start, self.case.validated(start)
        moved = judge(searched.best) < judge(begun)
        network, scores = searched.best if moved else begun
        batch = next(self._batches(objective))
        step = cost.computed(jax.grad(loss), theta, self.stack, batch)[1]
        moving = 10 * sum(np.size(x) for x in jax.tree.leaves(theta))  # operations of Adam
        steps = count * ((step.flops + moving) * self.budget.steps)
        looks = count * (1 + self.budget.judgements) * sum(self._look(loss, theta, batch) for batch in held_out)
        return Learnt(network, searched.rate, scores, count, steps + looks, bytes_of(theta), step, moved)

    def _merge(self, method: str) -> tuple[Any, nm.Objective]:
        """The merge, None for a control, and what is minimised."""
        for name, control in CONTROLS.items():
            if method == control:
                return None, self.objectives[name]
        average = nm.Learned(nm.Average(), nm.PerTensor(), nm.Free())
        merges = {NP_MERGE: nm.np_merge(), ADA_MERGING: nm.ada_merging(ADA_SCALE), FEATURES: average}
        return merges[method], self.objectives[method]

    def _batches(self, objective: nm.Objective) -> Iterator[tuple]:
        """Examples for learning without end: of all held-in cells, or as many of one, whose expert is the teacher."""
        case, turns = self.case, objective is self.objectives[FEATURES]
        parts = [case.pair(x.learning) for x in case.cells.held_in.values()]
        size = case.task.learning.batch * (len(parts) if turns else 1)
        each = [nm.shuffled(*part, size, seed=100 * case.seed + k) for k, part in enumerate(parts)]
        while True:
            if turns:
                for k, batches in enumerate(each):
                    yield _of_expert(next(batches)[0], k)
            else:
                yield jax.tree.map(lambda *x: np.concatenate(x), *(next(batches) for batches in each))

    def _held_out(self, objective: nm.Objective) -> list[tuple]:
        """Validation examples, as many of each held-in cell."""
        parts = [x.validation for x in self.case.cells.held_in.values()]
        parts = [part.first(min(map(len, parts))) for part in parts]
        if objective is self.objectives[FEATURES]:
            return [_of_expert(self.case.pair(part)[0], k) for k, part in enumerate(parts)]
        return [self.case.pair(joined(parts))]

    def _look(self, loss: Loss, theta: PyTree, batch: tuple) -> float:
        return operations(jax.make_jaxpr(loss)(theta, self.stack, batch))


def start_of(method: str) -> nm.Merge:
    """Where a control begins: where the learned merge does that it stands beside."""
    return nm.TaskArithmetic(ADA_SCALE) if method == CONTROLS[ADA_MERGING] else nm.Average()


def badness(scores: Scores, cells: Sequence[Cell]) -> float:
    """What choices are made by: the lowest has the highest mean accuracy over these cells, the loss decides ties."""
    accuracy, loss = scores.mean(cells)
    return 1 - accuracy + 1e-6 * float(np.clip(loss, 0, 100)) if np.isfinite(loss) else np.inf


def _of_expert(inputs: PyTree, k: int) -> tuple:
    count = len(jax.tree.leaves(inputs)[0])
    return inputs, jnp.full(count, k, jnp.int32)
