"""The rows of one block and seed: what there is to do, and doing it."""

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import typer

import npmerge as nm
from alignment.graph import PyTree
from experiments.learning import Budget, adam, lowest, mean_shares, search
from experiments.run import Rows
from experiments.scaling.memory import step_bytes
from experiments.scaling.networks import Networks, spent
from experiments.scaling.settings import (
    ARITHMETIC,
    AVERAGE,
    BEST,
    CLOSED,
    CONTROL,
    CONTROLS,
    DARE,
    ENSEMBLE,
    FISHER,
    JOINT,
    LEARNED,
    LEVELS,
    LONG,
    NONE,
    OF_A_BASE,
    ONE,
    PAIRS,
    REGMEAN,
    REPAIR,
    SHORT,
    SUCCESSIVE,
    TENSORS,
    TIES,
    Block,
)


class Job(NamedTuple):
    """A row that is to be made."""

    models: int
    alignment: str
    method: str


def wanted(block: Block) -> Iterator[Job]:
    """The rows of a block, in order."""
    for n in block.counts:
        yield from (Job(n, "", method) for method in LEVELS)
        yield from (Job(n, alignment, AVERAGE) for alignment in block.alignments)
        closed = [m for m in CLOSED if m != AVERAGE and (m in OF_A_BASE) <= (block.start == "one")]
        yield from (Job(n, block.home, method) for method in closed if method != REPAIR or block.start == "own")
        yield from (Job(n, block.home, method) for method in (*LEARNED, *CONTROLS))
        if block.start == "own":
            yield from (Job(n, SUCCESSIVE, method) for method in (SHORT, CONTROL))


LOOKS = 4
"""Moments at which validation data are looked at in each turn of `PAIRS`, besides its start and its end.

`LONG` is looked at as often, all else that is learned after every step: a control may stop wherever what it controls may.
"""

MEASURED = (JOINT, TENSORS, PAIRS, CONTROL)
"""Rows of which it is told what a step holds."""


class Found(NamedTuple):
    """What was learned: a network, its validation loss, numbers learned at once, the largest mean share of a network in it."""

    network: PyTree
    loss: float
    learned: int
    share: float | str


class Learner(NamedTuple):
    """A row that learns: what each rate gives, its rates, and what a step holds."""

    learn: Callable[[float], Found]
    rates: Sequence[float]
    steps: int
    example: Callable[[], tuple[Any, PyTree, PyTree]]  # loss, theta and stack of a step


class Experiment:
    """One block and seed."""

    def __init__(self, networks: Networks, rows: Rows):
        self.networks, self.rows = networks, rows
        self.settings, self.block = networks.settings, networks.block
        self._held: dict[tuple[str, int], dict[str, int]] = {}
        self._ones: dict[int, dict[str, Any]] = {}

    def run(self) -> None:
        """Every row that is not there yet."""
        for job in wanted(self.block):
            key = {"seed": self.networks.seed, "block": self.block.name, **job._asdict()}
            if self.rows.has(**key):
                continue
            began = time.perf_counter()
            row = key | self.measured(job)
            self.rows.add(row | {"seconds": round(time.perf_counter() - began, 2)})
            typer.echo(f"{', '.join(str(x) for x in key.values() if x != '')}: accuracy {row['accuracy']:.4f}", err=True)

    def measured(self, job: Job) -> dict[str, Any]:
        """The columns of a row."""
        if job.method in LEVELS:
            return self._level(job)
        if job.method == ONE:
            return dict(self._one(job.models))
        models, aligning = self.networks.aligned(job.alignment, job.models)
        columns = self._closed(job, models) if job.method in CLOSED else self._learned(job, models)
        inside = job.alignment == SUCCESSIVE and job.method == SHORT  # it aligns to what it has learned, as it merges
        return columns | {"aligning": 0.0 if inside else round(aligning, 4)}

    def _one(self, count: int) -> dict[str, Any]:
        """The best of so many networks fine-tuned."""
        if (best := self._best(count)) not in self._ones:
            self._ones[best] = self._learned(Job(1, NONE, ONE), [self.networks.models[best]]) | {"aligning": 0.0}
        return self._ones[best]

    def _best(self, count: int) -> int:
        """Which of the first so many networks has the lowest loss on validation data, as everything is chosen."""
        return int(np.argmin([self.networks.judged(model).loss for model in self.networks.models[:count]]))

    def _level(self, job: Job) -> dict[str, Any]:
        """The networks themselves, the best of them on validation data, and the mean of their logits."""
        labels = np.concatenate([labels for _, labels in self.networks.test])
        logits = self.networks.logits[: job.models]
        if job.method == ENSEMBLE:
            return _row(*_metrics(logits.mean(0), labels))
        each = [_metrics(x, labels) for x in logits]
        if job.method == BEST:
            return _row(*each[self._best(job.models)])
        return _row(*np.mean(each, axis=0).tolist())

    # ------------------------------------------------------------------------------------------------------ closed forms

    def _closed(self, job: Job, models: list[PyTree]) -> dict[str, Any]:
        """A merge without labels but for its scale, which validation data choose; what one merge costs."""
        stack = nm.stack_models(models, self.networks.starts[0] if self.block.start == "one" else None)
        if job.method == REPAIR:
            return self._repaired(models)
        stats: Any = None
        if job.method in (REGMEAN, FISHER):
            statistic = nm.InputGram() if job.method == REGMEAN else nm.DiagonalFisher()
            stats = self.networks.stats(models, [statistic])
        key = jax.random.key(self.networks.seed) if job.method == DARE else None
        name, make, grid, further = self._choices(job)

        def merged(value: float) -> tuple[PyTree, float]:
            network = make(value)(stack, stats=stats, key=key)
            return network, self.networks.judged(network).loss if name else 0.0

        with warnings.catch_warnings(record=True) as said:
            warnings.filterwarnings("always", ".*data leave directions open.*")
            found = search(grid, merged, lambda network_and_loss: network_and_loss[1], further)
            merge = make(found.rate)
            _, seconds = spent(lambda: merge(stack, stats=stats, key=key))  # once more: it is compiled now
        notes = sorted({str(warning.message) for warning in said})
        chosen = f"{name} {found.rate:g}" if name else ""
        at_end = int(found.rate in (min(found.found), max(found.found))) if name else ""
        return self._tested(found.best[0], chosen=chosen, end=at_end, merging=seconds, notes=notes)

    def _choices(self, job: Job) -> tuple[str, Callable[[float], nm.Merge], Sequence[float], int]:
        """The name of the hyper-parameter, the merge that has it, its grid, and how far beyond the grid may go."""
        n, s = job.models, self.settings
        if job.method in OF_A_BASE:
            make: dict[str, Callable[[float], nm.Merge]] = {
                ARITHMETIC: lambda x: nm.TaskArithmetic(x / n),
                TIES: lambda x: nm.Ties(scale=x),
                DARE: lambda x: nm.Dare(scale=x / n),
            }
            return "scale", make[job.method], s.scales, s.further
        if job.method == REGMEAN:
            return "off-diagonal", lambda x: nm.RegMean(scale=x), s.shrinks, 0
        return "", lambda _: nm.Average() if job.method == AVERAGE else nm.Fisher(), (1.0,), 0

    def _repaired(self, models: list[PyTree]) -> dict[str, Any]:
        """The average with each channel rescaled as the networks have it."""
        n = self.networks
        average, measuring = nm.Average()(nm.stack_models(models)), n.measuring(len(models))
        repair = functools.partial(nm.repair, n.apply, n.graph, average, models, measuring)
        repair()  # compiles
        found, seconds = spent(repair)
        return self._tested(found.variables, merging=seconds)

    # ----------------------------------------------------------------------------------------------------------- learned

    def _learned(self, job: Job, models: list[PyTree]) -> dict[str, Any]:
        """Learned at each rate, the best one on validation data, and what one such run costs, the compiling one aside."""
        learner = self._learner(job, models)

        def learn(rate: float) -> tuple[Found, float]:
            return spent(functools.partial(learner.learn, rate))

        searched = search(learner.rates, learn, lambda tried: tried[0].loss, self.settings.further)
        found, _ = searched.best
        merging = min(seconds for _, seconds in searched.found.values())
        at_end = int(searched.rate in (min(searched.found), max(searched.found)))
        columns: dict[str, Any] = {"merging": merging, "rate": searched.rate, "end": at_end, "steps": learner.steps}
        if job.method in MEASURED:  # the others take the steps of one of these
            columns |= self._bytes(job, learner)
        columns |= {"labelled": self.settings.labelled, "learned": found.learned, "share": found.share}
        return self._tested(found.network, **columns)

    def _bytes(self, job: Job, learner: Learner) -> dict[str, int]:
        """What a step holds, compiled once where it is the same for all numbers of networks."""
        key = job.method, job.models if job.method in (JOINT, TENSORS) else 0
        if key not in self._held:
            loss, theta, stack = learner.example()
            self._held[key] = step_bytes(loss, adam(1e-3, 1), theta, stack, next(self._batches()))._asdict()
        return self._held[key]

    def _learner(self, job: Job, models: list[PyTree]) -> Learner:
        s, n = self.settings, len(models)
        if job.method in (SHORT, PAIRS):
            steps = s.steps if job.method == PAIRS else max(1, s.steps // (n - 1))
            learn = functools.partial(self._pairs, job, models, steps)
            return Learner(learn, s.learned_rates, steps * (n - 1), self._pair_of(models))
        if job.method in CONTROLS:
            turns = n - 1 if job.method == LONG else 1
            start = models[0] if job.method == ONE else nm.Average()(nm.stack_models(models))
            return self._fitted(start, self.networks.loss, None, s.control_rates, turns)
        stack = nm.stack_models(models)
        merge = nm.Learned(nm.Average(), nm.PerParameter() if job.method == JOINT else nm.PerTensor(), nm.Simplex())
        loss = nm.weight_space(merge, self.networks.apply, self.networks.objective)
        return self._fitted(merge.init(stack), loss, stack, s.learned_rates, 1)

    def _fitted(self, theta: PyTree, loss: Any, stack: nm.Stack | None, rates: Sequence[float], turns: int) -> Learner:
        """Of a theta that `fit` learns, in the steps of so many turns of pairs, with as many looks at validation data."""
        steps = self.settings.steps * turns

        def learn(rate: float) -> Found:
            budget = Budget(steps, steps if turns == 1 else (LOOKS + 2) * turns)
            held_out = self.networks.validation
            found = budget.tuned(theta, loss, stack, batches=self._batches, held_out=held_out, rates=[rate])
            if stack is None:
                return Found(found.theta, found.loss, nm.parameters(theta), "")
            network, coefficients = _merged(loss.merge, found.theta, stack)
            return Found(network, found.loss, nm.parameters(theta), _largest(coefficients, network))

        return Learner(learn, rates, steps, lambda: (loss, theta, stack))

    def _pairs(self, job: Job, models: list[PyTree], steps: int, rate: float) -> Found:
        """One network after another; a turn of few steps is looked at after each."""
        n = self.networks
        successive = job.alignment == SUCCESSIVE
        given, realign = (n.models[: job.models], n.matched) if successive else (models, None)
        found = nm.successive(
            given, n.apply, n.objective, self._batches(), adam(rate, steps), steps=steps, realign=realign,
            held_out=n.validation, every=max(1, steps // LOOKS) if job.method == PAIRS else 1,
        )  # fmt: skip
        loss = lowest(found.turns[-1].history.held_out_loss)
        return Found(found.network, loss, nm.parameters(found.turns[0].theta), _largest(found.shares, found.network))

    def _pair_of(self, models: list[PyTree]) -> Callable[[], tuple[Any, PyTree, PyTree]]:
        def pair() -> tuple[Any, PyTree, PyTree]:
            merge, stack = nm.np_merge(), nm.stack_models(models[:2])
            return nm.weight_space(merge, self.networks.apply, self.networks.objective), merge.init(stack), stack

        return pair

    def _batches(self) -> Iterator[tuple]:
        return nm.shuffled(*self.networks.labelled, self.settings.batch, seed=self.networks.seed)

    def _tested(self, network: PyTree, **columns: Any) -> dict[str, Any]:
        metrics = self.networks.tested(network)
        return _row(metrics.accuracy, metrics.loss, **columns)


@functools.partial(jax.jit, static_argnums=0)
def _merged(merge: nm.Learned, theta: PyTree, stack: nm.Stack) -> tuple[PyTree, PyTree]:
    return merge.apply(theta, stack), merge.coefficients(theta, stack)


def _largest(coefficients: PyTree, network: PyTree) -> float:
    return round(float(mean_shares(coefficients, network).max()), 4)


def _metrics(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return float((logits.argmax(-1) == labels).mean()), float(loss)


EMPTY = {
    "chosen": "", "rate": "", "end": "", "share": "", "labelled": 0, "steps": 0, "learned": 0, "aligning": 0.0, "merging": "",
    "predicted": "", "planned": "", "notes": [],
}  # fmt: skip
"""The columns of a row that not every row fills."""


def _row(accuracy: float, loss: float, **columns: Any) -> dict[str, Any]:
    rounded = {name: round(x, 5) if isinstance(x, float) and name == "merging" else x for name, x in columns.items()}
    return {"accuracy": accuracy, "loss": loss, **EMPTY, **rounded}
