"""The rows of one task and seed: every method with what it costs, its hyper-parameters one by one, and fewer networks."""

import contextlib
import functools
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import typer

import npmerge as nm
from alignment.graph import PyTree
from experiments.compositional.case import Case
from experiments.compositional.generation import Generated
from experiments.compositional.grid import Cell, shuffles
from experiments.compositional.learned import Learner, badness
from experiments.compositional.methods import at_ends, first_alone, shortened, spread, ways
from experiments.compositional.networks import Scores
from experiments.compositional.results import OVER_EXPERTS, SCORES
from experiments.compositional.settings import (
    ADA_MERGING,
    ADA_SCALE,
    ADA_START,
    BASE,
    CONTROLS,
    CURVE_KEY,
    EXPERT,
    EXPERTS,
    HOME,
    KEY,
    LEARNED,
    MULTITASK,
    REAL,
    SENSITIVITY_KEY,
)
from experiments.grids import Choice, Way
from experiments.run import Rows
from npmerge import cost
from npmerge.operations import operations

SHOWN = 6
"""Values of a hyper-parameter at most that its sensitivity is told by."""


class Files(NamedTuple):
    """The files of rows in a folder."""

    rows: Rows
    sensitivity: Rows
    curves: Rows


def files(out: Any, made_with: Mapping[str, Any]) -> Files:
    """Those of a folder. Raises ValueError for rows that were made with other settings."""
    keys = {"rows": KEY, "sensitivity": SENSITIVITY_KEY, "curves": CURVE_KEY}
    return Files(*(Rows(out / f"{name}.csv", key, made_with) for name, key in keys.items()))


COSTS = ("statistics_flops", "merge_flops", "learning_flops", "judging_flops", "bytes", "peak_bytes", "cost_seconds")
EMPTY: dict[str, Any] = {
    "chosen": [],
    "tried": 0,
    "ends": [],
    "rate": "",
    "moment": "",
    "uncounted": 0,
    "error": "",
    **dict.fromkeys(COSTS, 0),
}
"""What a row holds besides scores, where it has no such thing."""


class Experiment:
    """One task and seed."""

    def __init__(self, case: Case, found: Files):
        self.case, self.files = case, found
        self.place = {"seed": case.seed, "task": case.task.name}
        self.ways = {name: shortened(way, case.task.values) for name, way in ways(case.operator).items()}
        self.every = tuple(range(len(case.held_in)))
        self.learner = functools.cache(lambda: Learner(case))
        self.cost_of = functools.cache(case.cost_of)

    def run(self) -> None:
        """Every row that is not there yet. Raises ValueError where networks in the folder are of other settings."""
        case = self.case
        case.prepare()
        jobs: dict[tuple[str, Any], Callable[[], dict[str, Any]]] = {
            (BASE, ""): lambda: self.scored(case.base) | {"moment": case.moments("base")[0]},
            (HOME, ""): self.at_home,
            **{(EXPERT, k): functools.partial(self.expert, k) for k in self.every},
            (EXPERTS, ""): self.own,
            (MULTITASK, ""): lambda: self.scored(case.multitask) | {"moment": case.moments("multitask")[0]},
        }
        if isinstance(case, Generated):
            jobs[REAL, ""] = lambda: self.told(case.real(), case.real())
        if ADA_MERGING in self.methods():
            jobs[ADA_START, ""] = lambda: self.scored(self.merge(nm.TaskArithmetic(ADA_SCALE), self.every))
        for name in self.methods():
            learns = name in LEARNED or name in CONTROLS.values()
            jobs[name, ""] = functools.partial(self.if_able, self.learnt if learns else self.merged, name)
        for (method, expert), job in jobs.items():
            self.row(method, expert, job)
        for name in self.methods():
            if name in self.ways:
                self.sensitivity(name)
        self.curves()

    def methods(self) -> list[str]:
        """Those that there are for these networks: AdaMerging needs classes."""
        able = self.case.classified
        return [name for name in self.case.task.methods if able or name not in (ADA_MERGING, CONTROLS[ADA_MERGING])]

    def row(self, method: str, expert: Any, job: Callable[[], dict[str, Any]]) -> None:
        """One row, with its wall time."""
        key = self.place | {"method": method, "expert": expert}
        if self.files.rows.has(**key):
            return
        began = time.perf_counter()
        with unwarned():
            found = job()
        seconds = round(time.perf_counter() - began, 2)
        self.files.rows.add(key | EMPTY | found | {"seconds": seconds})
        scores = (f"{found[name]:.3f}" for name in SCORES if found[name] != "")
        told = found.get("error") or ", ".join(scores)
        typer.echo(f"{', '.join(str(x) for x in key.values() if x != '')}: {told} ({seconds:.1f} s)", err=True)

    # ------------------------------------------------------------------------------------------------------------- the rows

    def scored(self, variables: PyTree) -> dict[str, Any]:
        """The scores of a network."""
        return self.told(self.case.validated(variables), self.case.tested(variables))

    def told(self, validated: Scores, tested: Scores) -> dict[str, Any]:
        """The columns of scores."""
        case = self.case
        columns: dict[str, Any] = {}
        pairs = {"validation": (validated, case.held_in), "held_in": (tested, case.held_in)}
        for name, (scores, cells) in {**pairs, "generalisation": (tested, case.generalisation)}.items():
            columns |= self.columns(name, scores, cells)
        columns["cells"] = [round(tested.accuracy[cell], 4) for cell in case.cells.grid.cells]
        return columns

    def columns(self, name: str, scores: Scores, cells: Sequence[Cell]) -> dict[str, Any]:
        """Those of the scores in some cells."""
        accuracy, loss = scores.mean(cells)
        area = scores.mean_auroc(cells)
        each = accuracy, loss, "" if area is None else area, scores.standard_error(cells)
        return dict(zip(columns_of(name), each, strict=True))

    def expert(self, k: int) -> dict[str, Any]:
        """One of the experts."""
        return self.scored(self.case.experts[k]) | {"moment": self.case.moments("experts")[k]}

    def at_home(self) -> dict[str, Any]:
        """The base in its own domain, which is what it was trained on: there is nothing to generalise to."""
        found = self.case.tested(self.case.base)
        return dict.fromkeys(MEASURES, "") | self.columns("held_in", found, self.case.cells.grid.home) | {"cells": []}

    def own(self) -> dict[str, Any]:
        """Every cell by the expert of its category."""
        case = self.case
        tested, validated = ([judge(model) for model in case.experts] for judge in (case.tested, case.validated))

        def of_category(scores: Sequence[Scores]) -> Scores:
            each = zip(*scores, strict=True)  # accuracies of all experts, losses of all, and so on
            return Scores(*({cell: x[cell.category][cell] for cell in x[0] if cell in x[cell.category]} for x in each))

        return self.told(of_category(validated), of_category(tested))

    def if_able(self, make: Callable[[str], dict[str, Any]], name: str) -> dict[str, Any]:
        """The columns of a method, or why it refuses."""
        try:
            return make(name)
        except ValueError as error:
            return dict.fromkeys(MEASURES, "") | {"error": str(error)}

    def merged(self, name: str) -> dict[str, Any]:
        """A merge with the hyper-parameters that validation data choose, and what it costs."""
        way = self.ways[name]
        choice = self.tuned(way, self.every)
        merge = way.make(**choice.fields)
        network, spent = cost.merged(merge, self.case.stack(self.every), self.stats(merge, self.every), self.key)
        columns = {"chosen": [list(x) for x in choice.fields.items()], "ends": at_ends(choice.fields, way)}
        return self.scored(network) | columns | {"tried": choice.tried} | self.spent(merge, spent)

    def learnt(self, name: str) -> dict[str, Any]:
        """A learned merge or its control."""
        found = self.learner().learnt(name)
        columns = self.told(found.scores, self.case.tested(found.variables))
        columns |= {
            "tried": found.tried,
            "rate": found.rate if found.moved else "",
            "learning_flops": found.flops,
            **self.judging_flops(),
        }
        seconds = round(found.step.seconds * self.case.task.learning.steps, 5)
        columns |= {"bytes": found.kept, "peak_bytes": found.step.peak_bytes, "cost_seconds": seconds}
        return columns | ({} if found.moved else {"moment": 0})

    def tuned(self, way: Way, order: Sequence[int]) -> Choice:
        """The fields of the best merge on the validation data of these networks' cells."""
        cells = [self.case.held_in[k] for k in order]

        def judge(merge: nm.Merge) -> float:
            return badness(self.case.validated(self.merge(merge, order)), cells)

        return way.tuned(judge)

    def merge(self, merge: nm.Merge, order: Sequence[int]) -> PyTree:
        """Some of the networks merged."""
        with unwarned():
            return merge(self.case.stack(order), stats=self.stats(merge, order), key=self.key)

    def stats(self, merge: nm.Merge, order: Sequence[int]) -> dict[type, Any]:
        """What a merge needs."""
        return self.case.stats(order, merge.needs)

    @property
    def key(self) -> jax.Array:
        """For methods that drop entries at random."""
        return jax.random.key(self.case.seed)

    # ---------------------------------------------------------------------------------------------------------------- costs

    def spent(self, merge: nm.Merge, spent: cost.Cost) -> dict[str, Any]:
        """The columns of costs: the statistics are those of all experts."""
        kinds = [kind for kind in self.case.kinds if type(kind) in merge.needs]
        statistics, models = [self.cost_of(kind) for kind in kinds], len(self.every)
        return {
            "statistics_flops": models * sum(c.flops for c in statistics),
            "merge_flops": spent.flops,
            "bytes": spent.bytes + models * sum(c.bytes for c in statistics),
            "peak_bytes": max([spent.peak_bytes, *(c.peak_bytes for c in statistics)]),
            "cost_seconds": round(spent.seconds + models * sum(c.seconds for c in statistics), 5),
            "uncounted": int(spent.uncounted or any(c.uncounted for c in statistics)),
            **self.judging_flops(),
        }

    @functools.cache  # noqa: B019 (an experiment lives as long as its rows)
    def judging_flops(self) -> dict[str, float]:
        """Operations of looking at all validation data once."""
        return {"judging_flops": operations(jax.make_jaxpr(self.case.judging())(self.case.base))}

    # ---------------------------------------------------------------------------------------- hyper-parameters, fewer networks

    def sensitivity(self, name: str) -> None:
        """Each hyper-parameter through its grid, or a few values of it, the others as they were chosen."""
        way, chosen = self.ways[name], self.chosen(name)
        if chosen is None:
            return
        pairs = ((f, value) for f, grid in way.grids.items() for value in sorted({*spread(grid, SHOWN), chosen[f]}))
        for field, value in pairs:
            key = self.place | {"method": name, "field": field, "value": value}
            if self.files.sensitivity.has(**key):
                continue
            found = self.scored_if_able(functools.partial(way.make, **{**chosen, field: value}), self.every)
            if found:
                self.files.sensitivity.add(key | {name: found[name] for name in ("validation", *SCORES)})

    def chosen(self, name: str) -> dict[str, Any] | None:
        """The hyper-parameters in the row of a method; None if it has none because it refused."""
        key = self.place | {"method": name, "expert": ""}
        (row,) = [r for r in self.files.rows.all if all(r[k] == v for k, v in key.items())]
        return None if row["error"] else dict(row["chosen"])

    def scored_if_able(self, make: Callable[[], nm.Merge], order: Sequence[int]) -> dict[str, Any] | None:
        """The scores of a merge, None if it refuses."""
        try:
            return self.scored(self.merge(make(), order))
        except ValueError:
            return None

    def curves(self) -> None:
        """From two networks to all, nested in several orders; hyper-parameters are chosen for each subset."""
        models, task = len(self.every), self.case.task
        orders = shuffles(models, min(task.orders, models * (models - 1) // 2)) if task.curves and task.orders else ()
        numbers = [m for m in range(2, models) if task.numbers is None or m in task.numbers]
        for m, (which, order), name in itertools.product([*numbers, models], enumerate(orders), task.curves):
            if m == models and which:
                continue  # all orders end with the same networks
            key = self.place | {"method": name, "models": m, "order": which}
            if name not in self.methods() or self.files.curves.has(**key) or (chosen := self.chosen(name)) is None:
                continue
            with contextlib.suppress(ValueError):  # a method that refuses these networks has no row of them
                self.files.curves.add(key | self.of_subset(name, chosen, sorted(order[:m])))

    def of_subset(self, name: str, chosen: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
        """A merge of some networks: in their own cells, also less the experts there, and in the cells that no network has."""
        way = first_alone(shortened(self.ways[name], self.case.task.curve_values), chosen)
        choice = self.tuned(way, order)
        tested = self.case.tested(self.merge(way.make(**choice.fields), order))
        cells = [self.case.held_in[k] for k in order]
        over = [tested.accuracy[cell] - self.own_accuracies[k] for k, cell in zip(order, cells, strict=True)]
        scores = {"held_in": tested.mean(cells)[0], OVER_EXPERTS: float(np.mean(over))}
        scores["generalisation"] = tested.mean(self.case.generalisation)[0]
        return scores | {"chosen": [list(x) for x in (chosen | choice.fields).items()], "members": list(order)}

    @functools.cached_property
    def own_accuracies(self) -> list[float]:
        """Of each expert in its own cell."""
        pairs = zip(self.case.experts, self.case.held_in, strict=True)
        return [self.case.tested(expert).accuracy[cell] for expert, cell in pairs]


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Without what methods say they did with singular systems: of hundreds of merges nobody would read it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        yield


def columns_of(name: str) -> tuple[str, ...]:
    """Accuracy, loss, AUROC, and what the accuracy is uncertain by because its examples are few."""
    return name, f"{name}_loss", f"{name}_auroc", f"{name}_standard_error"


MEASURES = (*itertools.chain.from_iterable(map(columns_of, ("validation", *SCORES))), "cells")
