"""The rows of one setup and seed: what there is to do, and doing it."""

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import typer

import npmerge as nm
from alignment.graph import PyTree
from experiments.learning import Budget, search
from experiments.overtraining.experts import Experts, Family, Moment, measured
from experiments.overtraining.settings import (
    ARITHMETIC,
    AVERAGE,
    BASE,
    CLOSED,
    CONTROL,
    DARE,
    ENSEMBLE,
    KEY,
    LEARNED,
    LEVELS,
    LORA,
    MIXTURE,
    MIXTURES,
    PLATEAU,
    REGMEAN,
    TIES,
    TRAININGS,
    Settings,
)
from experiments.run import Rows


class Files(NamedTuple):
    """The files of rows in a folder: merges, and examples by difficulty."""

    rows: Rows
    difficulty: Rows


def files(out: Any, made_with: dict[str, Any]) -> Files:
    """Those of a folder. Raises ValueError for rows that were made with other settings."""
    return Files(Rows(out / "rows.csv", KEY, made_with), Rows(out / "difficulty.csv", (*KEY[:4], "group"), made_with))


def wanted(settings: Settings) -> Iterator[tuple[str, Moment, str]]:
    """Training, moment and method of every row of a setup."""
    for training in TRAININGS:
        moments: list[Moment] = [*settings.moments, PLATEAU]
        for moment in moments:
            yield from ((training, moment, method) for method in (*LEVELS, *CLOSED, LEARNED, CONTROL))
            if training == LORA:
                yield from ((training, moment, method) for method in MIXTURES)


class Experiment:
    """One setup and seed."""

    def __init__(self, family: Family, found: Files):
        self.family, self.files, self.settings = family, found, family.settings
        self.place = {"seed": family.seed, "setup": family.setup.name}

    def run(self) -> None:
        """Every row that is not there yet."""
        for training, moment, method in wanted(self.settings):
            key = {**self.place, "training": training, "steps": moment, "method": method}
            if self.files.rows.has(**key):
                continue
            began = time.perf_counter()
            experts = self.family.experts(training)[moment]
            row = key | self.measured(training, experts, method)
            self.files.rows.add(row | {"seconds": round(time.perf_counter() - began, 2)})
            typer.echo(f"{', '.join(map(str, key.values()))}: accuracy {row['accuracy']:.4f}", err=True)
        self._difficulty()

    def measured(self, training: str, experts: Experts, method: str) -> dict[str, Any]:
        """The columns of a row."""
        if method in LEVELS:
            found = self._level(experts, method)
        elif method in MIXTURES:
            found = self._mixture(experts, method)
        elif method in CLOSED:
            found = self._closed(experts, method)
        else:
            found = self._learned(experts, method)
        return {**EMPTY, **found, "trained": list(experts.steps)}

    def _level(self, experts: Experts, method: str) -> dict[str, Any]:
        """The base, the experts each on its own task, and the mean of their logits."""
        f = self.family
        if method == BASE:
            return self._base
        if method == ENSEMBLE:
            return self._judged(experts.models, nm.LogitEnsemble(f.apply))
        judged = [nm.evaluate(f.apply, m, part).loss for m, part in zip(experts.models, f.selections, strict=True)]
        each = [nm.evaluate(f.apply, m, part) for m, part in zip(experts.models, f.tests, strict=True)]
        return _row(each, float(np.mean(judged)))

    @functools.cached_property
    def _base(self) -> dict[str, Any]:
        """The same at every moment."""
        return self._judged(self.family.base)

    def _closed(self, experts: Experts, method: str) -> dict[str, Any]:
        """A merge without labels but for its hyper-parameter, which selection data choose."""
        f, stack = self.family, nm.stack_models(experts.models, self.family.base)
        stats: Any = None
        if method == REGMEAN:
            own = [measured(task.learning) for task in f.tasks.each]
            stats = nm.collect_each(f.apply, f.graph, experts.models, own, [nm.InputGram()])
        key = jax.random.key(f.seed) if method == DARE else None
        name, make, grid, further = self._choices(method)

        def merged(value: float) -> tuple[PyTree, float]:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*data leave directions open.*")  # there it is the average: see the page
                network = make(value)(stack, stats=stats, key=key)
            return network, f.selected(network)

        found = search(grid, merged, lambda network_and_loss: network_and_loss[1], further)
        network, loss = found.best
        return _row(f.tested(network), loss, chosen=f"{name} {found.rate:g}" if name else "")

    def _choices(self, method: str) -> tuple[str, Callable[[float], nm.Merge], Sequence[float], int]:
        """The name of the hyper-parameter, the merge that has it, its grid, and how far beyond the grid may go."""
        s = self.settings
        if method == AVERAGE:
            return "", lambda _: nm.Average(), (1.0,), 0
        if method == REGMEAN:
            return "off-diagonal", lambda x: nm.RegMean(scale=x, ridge=1e-4), s.shrinks, 0
        make: Any = {ARITHMETIC: nm.TaskArithmetic, TIES: nm.Ties, DARE: nm.Dare}[method]
        return "scale", lambda x: make(scale=x), s.scales, s.further

    def _learned(self, experts: Experts, method: str) -> dict[str, Any]:
        """Coefficients or all weights of the average, learned from the same examples of all tasks."""
        f, s, stack = self.family, self.settings, nm.stack_models(experts.models)
        if method == CONTROL:
            found = self._tuned(nm.Average()(stack), f.full, None, s.control_rates)
            return self._judged(found.theta, rate=found.rate)
        merge = nm.np_merge()
        found = self._tuned(merge.init(stack), nm.weight_space(merge, f.apply, f.objective), stack, s.learned_rates)
        return self._judged(_merged(merge, found.theta, stack), rate=found.rate)

    def _mixture(self, experts: Experts, method: str) -> dict[str, Any]:
        """The blocks of all experts side by side, weighed alike or by a router that is learned from the same examples."""
        f, s = self.family, self.settings
        routed = nm.route(f.apply, experts.models, f.setup.blocks, example_of(f), nm.Router())
        if method != MIXTURE:
            return self._judged(routed.variables, routed.apply)
        found = self._tuned(routed.variables, nm.fine_tuning(routed.apply, f.objective), None, s.router_rates)
        return self._judged(found.theta, routed.apply, rate=found.rate)

    def _tuned(self, theta: PyTree, loss: Any, stack: nm.Stack | None, rates: Sequence[float]) -> Any:
        f, s = self.family, self.settings
        batches = functools.partial(nm.shuffled, *f.learning, s.batch, seed=f.seed)
        held_out = [batch for part in f.selections for batch in part]
        return Budget(s.steps, further=s.further).tuned(theta, loss, stack, batches=batches, held_out=held_out, rates=rates)

    def _judged(self, variables: PyTree, apply: Any = None, **columns: Any) -> dict[str, Any]:
        return _row(self.family.tested(variables, apply), self.family.selected(variables, apply), **columns)

    # --------------------------------------------------------------------------------------------------------- difficulty

    def _difficulty(self) -> None:
        """Training examples in groups by EL2N: which the experts have right, and which of those the average forgets.

        Experts of another run give the scores: what these have learnt says nothing of the ones that are judged.
        """
        f, s = self.family, self.settings
        for training in TRAININGS:
            if all(self.files.difficulty.has(**self._group(training, moment, s.groups - 1)) for moment in s.moments):
                continue
            experts = f.experts(training)
            scored = zip(f.scoring(training), f.tasks.each, strict=True)
            groups = [np.array_split(np.argsort(f.difficulty(model, task), kind="stable"), s.groups) for model, task in scored]
            for moment in s.moments:
                rows = self._by_group(experts[moment].models, groups)
                for group, row in enumerate(rows):
                    if not self.files.difficulty.has(**(key := self._group(training, moment, group))):
                        self.files.difficulty.add(key | row)

    def _group(self, training: str, moment: Moment, group: int) -> dict[str, Any]:
        return {**self.place, "training": training, "steps": moment, "group": group}

    def _by_group(self, models: list[PyTree], groups: list[list[np.ndarray]]) -> list[dict[str, float]]:
        """For each group the mean over tasks."""
        f, average = self.family, nm.Average()(nm.stack_models(models))
        found = []
        for model, task, places in zip(models, f.tasks.each, groups, strict=True):
            mine, merged = f.right(model, task), f.right(average, task)
            found.append([_shares(mine[part], merged[part]) for part in places])
        return [dict(zip(SHARES, map(float, shares), strict=True)) for shares in np.mean(found, axis=0)]


SHARES = ("expert", "merged", "forgotten")


def _shares(mine: np.ndarray, merged: np.ndarray) -> tuple[float, float, float]:
    """What the expert has right, what the average has, and the part of the former that the average has wrong."""
    return float(mine.mean()), float(merged.mean()), float((mine & ~merged).sum() / max(mine.sum(), 1))


def example_of(family: Family) -> Any:
    """A batch as a network reads it: shapes only."""
    inputs = family.learning.inputs[:2]
    return jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)


@functools.partial(jax.jit, static_argnums=0)
def _merged(merge: nm.Merge, theta: PyTree, stack: nm.Stack) -> PyTree:
    return merge.apply(theta, stack)


EMPTY = {"accuracy": 0.0, "loss": 0.0, "selection": 0.0, "each": [], "chosen": "", "rate": "", "trained": []}


def _row(each: list[nm.Metrics], selection: float, **columns: Any) -> dict[str, Any]:
    accuracies = [m.accuracy for m in each]
    mean = {"accuracy": float(np.mean(accuracies)), "loss": float(np.mean([m.loss for m in each])), "selection": selection}
    return {**mean, "each": [round(x, 4) for x in accuracies], **columns}
