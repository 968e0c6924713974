"""The rows of the experiment on strangers' networks: what there is to do for each part and seed, and doing it."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import npmerge as nm
from alignment.graph import PyTree
from experiments.data import Examples, Images, labelled
from experiments.learning import Budget
from experiments.run import Rows
from experiments.strangers.alignments import ALIGNMENTS, MATCHING
from experiments.strangers.merging import Merging
from experiments.strangers.networks import Strangers
from experiments.strangers.settings import AVERAGE, ENSEMBLE, PARENTS, PARTIAL, PLAIN, REPAIR, RESET, TEACHER, Part, Settings
from experiments.strangers.ways import WAYS


class Job(NamedTuple):
    """A row that is to be made: what tells it from others, and how."""

    method: str
    images: int
    size: float
    make: Callable[[], dict[str, Any]]


class Experiment:
    """One part and one seed."""

    def __init__(self, part: Part, strangers: Strangers, data: Images, settings: Settings, seed: int):
        self.part, self.strangers, self.settings, self.seed = part, strangers, settings, seed
        self.name = " + ".join(strangers.names)
        self.train, self.apply = data.train, strangers.network.apply
        self.test = nm.in_order(*data.test.take(np.arange(len(data.test.labels))[: settings.limit]), 500)
        self.drawn = labelled(data.train.labels, len(data.train.labels), seed=seed)
        self.mergings: dict[int, Merging] = {}

    def run(self, rows: Rows, paths: Rows, tell: Callable[[str], Any]) -> None:
        """Every row that is not there yet."""
        self.tell, self.rows = tell, rows
        jobs = list(self.jobs())
        for number, job in enumerate(jobs, 1):
            key = {"seed": self.seed, "networks": self.name, "method": job.method, "images": job.images, "size": job.size}
            if rows.has(**key):
                continue
            began = time.perf_counter()
            row = key | job.make()
            rows.add(row | {"seconds": round(time.perf_counter() - began, 1)})
            where = f"{self.name}, seed {self.seed}, row {number} of {len(jobs)}"
            tell(f"{where}: {job.method}, {job.images} images, size {job.size:g}: accuracy {row['accuracy']:.4f}")
        self.paths(paths)

    # ---------------------------------------------------------------------------------------------------- what there is to do

    def jobs(self) -> Iterator[Job]:
        """The rows in order. Those at the number of images that rates are chosen at come before other numbers."""
        measured = self.settings.measured
        yield Job(PARENTS, 0, 1.0, self.parents)
        yield Job(ENSEMBLE, 0, float(len(self.strangers.models)), self.ensemble)
        yield from self._averages(measured)
        for size in self.part.sizes:
            yield Job(PARTIAL, measured, size, functools.partial(self.pleas, size, sequential=True))
        if self.part.forced:
            yield Job(TEACHER, measured, 1.0, functools.partial(self.pleas, 1.0, sequential=False))
        for images in sorted(self.part.images, key=lambda count: count != self.settings.tuned):
            for way in self.part.ways:
                yield Job(way, images, 1.0, functools.partial(self.learned, way, images))

    def _averages(self, images: int) -> Iterator[Job]:
        kinds = {AVERAGE: self.average, RESET: self.reset, REPAIR: self.repaired}
        for kind, make in kinds.items():
            yield Job(f"{PLAIN}: {kind}", images, 1.0, functools.partial(make, None))
        for name in self.part.alignments:
            for kind, make in kinds.items():
                yield Job(f"{name}: {kind}", images, 1.0, functools.partial(make, name))

    # ------------------------------------------------------------------------------------------------------------- the rows

    def merging(self, images: int) -> Merging:
        """The networks with so many training images, at most all there are."""
        if images not in self.mergings:
            drawn = Examples(*self.train.take(self.drawn[:images]))
            self.mergings = {
                images: Merging(self.strangers, drawn, self.settings.measured, self.seed, self._tell)
            }  # one at a time: they are large
        return self.mergings[images]

    def parents(self) -> dict[str, Any]:
        """The networks themselves."""
        found = [nm.evaluate(self.apply, model, self.test) for model in self.strangers.models]
        accuracy, loss = (float(np.mean([getattr(f, name) for f in found])) for name in ("accuracy", "loss"))
        return _row(nm.Metrics(accuracy, loss, 0), each=[round(f.accuracy, 4) for f in found])

    def ensemble(self) -> dict[str, Any]:
        """The mean of their logits."""
        return _row(nm.evaluate(nm.LogitEnsemble(self.apply), self.strangers.models, self.test))

    def average(self, name: str | None) -> dict[str, Any]:
        """As it is."""
        return self._judged(nm.Average()(self._stack(name)))

    def reset(self, name: str | None) -> dict[str, Any]:
        """With statistics of its own."""
        return self._judged(self._measured.renewed(nm.Average()(self._stack(name))))

    def repaired(self, name: str | None) -> dict[str, Any]:
        """With the moments that its parents have."""
        return self._judged(self._measured.repaired(self._stack(name)))

    def pleas(self, size: float, *, sequential: bool) -> dict[str, Any]:
        """Of any size, by least squares."""
        found = self._measured.pleas(size, sequential=sequential)
        return _row(nm.evaluate(found.apply, found.variables, self.test), operations=found.operations)

    def learned(self, name: str, images: int) -> dict[str, Any]:
        """At the rate chosen in the first seed, or choosing it."""
        settings, way = self.settings, WAYS[name]
        chosen = self._chosen(name)
        found = self.merging(images).learned(way, Budget(settings.steps), settings.batch, chosen or way.rates)
        told = {"rate": found.rate, "validation": round(found.loss, 4), "each": [round(x, 3) for x in found.shares]}
        return self._judged(found.network) | told

    def paths(self, paths: Rows) -> None:
        """Networks on the line between the first two, before and after alignment, with statistics of their own."""
        if not self.part.path or paths.has(seed=self.seed, networks=self.name, alignment=MATCHING):
            return
        for name in (None, "weight matching", MATCHING):
            start, end = self._stack(name).models()[:2]
            path = nm.path_between(self.apply, start, end, self.test, points=self.part.path, reset=self._measured.renewed)
            values = {column: [round(float(x), 4) for x in getattr(path, column)] for column in path._fields}
            paths.add({"seed": self.seed, "networks": self.name, "alignment": name or PLAIN, **values})
            self._tell(f"path, {name or PLAIN}: barrier {path.barrier:.3f}")

    @property
    def _measured(self) -> Merging:
        return self.merging(self.settings.measured)

    def _stack(self, name: str | None) -> nm.Stack:
        """Aligned, the last one kept."""
        if getattr(self, "_kept", (None, None))[0] != (name or PLAIN):
            models = nm.stack_models(self.strangers.models)
            self._kept = (name or PLAIN, self._measured.aligned(ALIGNMENTS[name]) if name else models)
        return self._kept[1]

    def _chosen(self, name: str) -> tuple[float, ...]:
        """The rate of the first row of a way, in which it was chosen; none if that is this one."""
        return tuple(row["rate"] for row in self.rows.all if row["method"] == name)[:1]

    def _judged(self, variables: PyTree) -> dict[str, Any]:
        return _row(nm.evaluate(self.apply, variables, self.test))

    def _tell(self, text: str) -> None:
        self.tell(f"{self.name}, seed {self.seed}: {text}")


def _row(metrics: nm.Metrics, *, operations: float = 1.0, each: list[float] | None = None) -> dict[str, Any]:
    measured = {"accuracy": metrics.accuracy, "loss": metrics.loss, "operations": operations}
    return measured | {"rate": "", "validation": "", "each": each or []}
