"""The rows of one block and seed: what there is to do, and doing it."""

import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
import typer

import npmerge as nm
from alignment.base import Alignment
from experiments.cca_merge.networks import FIXED, Networks, cca, zipped
from experiments.cca_merge.settings import (
    ALIGNMENTS,
    BAD,
    BEST,
    CCA,
    CCA_REPAIR,
    CHOICES,
    ENSEMBLE,
    EVERY,
    FIRST,
    FOLDED,
    FOLDED_CCA,
    GOOD,
    KEY,
    ON_TEST,
    PARENTS,
    PERMUTED,
    PERMUTED_REPAIR,
    REPAIRED,
    TUNED,
    TUNED_CCA,
    TUNED_ONE,
    Block,
    Settings,
)
from experiments.cca_merge.spectra import spectra
from experiments.learning import Budget
from experiments.problem import Problem
from experiments.run import Rows


class Files(NamedTuple):
    """The files of rows in a folder: merges, the search for gamma by number of the reference, and correlations by layer."""

    rows: Rows
    gammas: Rows
    spectra: Rows


def files(out: Path, made_with: dict[str, Any]) -> Files:
    """Those of a folder. Raises ValueError for rows that were made with other settings."""
    place = KEY[:4]
    return Files(
        Rows(out / "rows.csv", KEY, made_with),
        Rows(out / "gammas.csv", (*place, "reference", "folded", "gamma"), made_with),
        Rows(out / "spectra.csv", (*place[:3], "node"), made_with),
    )


class Job(NamedTuple):
    """A row that is to be made."""

    models: int
    method: str
    reference: str


def wanted(block: Block) -> Iterator[Job]:
    """The rows of a block, in order."""
    for n in block.counts:
        yield from (Job(n, method, "") for method in (PARENTS, BEST, ENSEMBLE))
        yield from (Job(n, method, FIRST) for method in (*ALIGNMENTS, ON_TEST))
        if n in block.references:
            yield from (Job(n, method, choice) for method in (PERMUTED, CCA) for choice in CHOICES)
        yield from (Job(n, method, FIRST) for method in FOLDED if n in block.folded)
        yield from (Job(n, method, FIRST) for method in REPAIRED if n in block.repaired)
        yield from (Job(n, method, FIRST) for method in TUNED if n in block.tuned)


class Experiment:
    """One block and seed."""

    def __init__(self, settings: Settings, block: Block, problem: Problem, found: Files):
        self.settings, self.block, self.problem, self.files = settings, block, problem, found
        self.place = {"seed": problem.seed, "task": block.task, "split": block.split}
        self.networks = functools.cache(self._networks)
        self._one: dict[str, Any] = {}

    def run(self) -> None:
        """Every row that is not there yet."""
        for job in wanted(self.block):
            key = self.place | job._asdict()
            if self.files.rows.has(**key):
                continue
            began = time.perf_counter()
            row = key | self.measured(job)
            self.files.rows.add(row | {"seconds": round(time.perf_counter() - began, 2)})
            typer.echo(f"{', '.join(str(x) for x in key.values() if x != '')}: accuracy {row['accuracy']:.4f}", err=True)
        self._spectra()

    def _networks(self, count: int) -> Networks:
        """Those of a number of models; where all see the same images, all there are."""
        folder, most = self.files.rows.path.parent / "parents", max(self.block.counts)
        if self.block.split == "same" and count < most:
            return self.networks(most)
        return Networks(self.problem, self.block.split, count, folder)

    # ------------------------------------------------------------------------------------------------------------- the rows

    def measured(self, job: Job) -> dict[str, Any]:
        """The columns of a row."""
        networks = self.networks(job.models)
        if job.method in (PARENTS, BEST, ENSEMBLE):
            return _level(networks, job)
        if job.method == ON_TEST:
            return self._by_gamma(job.models, "test", [0])
        if job.method in TUNED:
            return self._tuned(networks, job)
        if job.method in REPAIRED:
            return self._repaired(networks, job)
        if job.method in (CCA, FOLDED_CCA):
            return self._by_gamma(job.models, "validation", _references(networks, job), folded=job.method == FOLDED_CCA)
        folded = job.method in FOLDED
        alignment, said = self._alignment(FOLDED.get(job.method, job.method), job.models)
        found = [networks.merged(alignment, _order(k, job.models), folded=folded) for k in _references(networks, job)]
        tested = [self.problem.tested(network) for network in found]
        return _row(*(float(np.mean([getattr(m, name) for m in tested])) for name in ("accuracy", "loss")), chosen=said)

    def _alignment(self, method: str, models: int) -> tuple[Alignment | None, str]:
        """A method with what validation data choose for the first network as the reference, and what that was."""
        if method in FIXED:
            return FIXED[method], ""
        if method == CCA:
            gamma = self._gamma(models, "validation", 0)["gamma"]
            return cca(gamma), f"gamma {gamma:g}"
        return self._zipped(models)

    @functools.cache  # noqa: B019 (an experiment lives as long as its rows)
    def _zipped(self, models: int) -> tuple[Alignment, str]:
        """ZipIt, alpha and beta of the highest accuracy on validation data."""
        networks = self.networks(models)
        judged = {pair: self.problem.judged(networks.merged(zipped(*pair), range(models))) for pair in self.settings.zipped}
        best = max(judged, key=lambda pair: (judged[pair].accuracy, -judged[pair].loss))
        return zipped(*best), "alpha {:g}, beta {:g}".format(*best)

    def _by_gamma(self, models: int, by: str, references: Sequence[int], *, folded: bool = False) -> dict[str, Any]:
        """CCA, the mean over references, each with the gamma that is chosen for it."""
        best = [self._gamma(models, by, k, folded=folded) for k in references]
        gammas = ", ".join(f"{row['gamma']:g}" for row in best)
        return _row(*(float(np.mean([row[name] for row in best])) for name in ("test", "test_loss")), chosen=f"gamma {gammas}")

    def _gamma(self, models: int, by: str, reference: int, *, folded: bool = False) -> dict[str, Any]:
        """The row of the gamma of highest accuracy on validation or test data; all of them are measured where they are not."""
        place, networks = self.place | {"models": models, "reference": reference, "folded": int(folded)}, self.networks(models)
        for gamma in self.settings.gammas:
            if not self.files.gammas.has(**place, gamma=gamma):
                network = networks.merged(cca(gamma), _order(reference, models), folded=folded)
                validation, test = self.problem.judged(network), self.problem.tested(network)
                measured = {"validation": validation.accuracy, "validation_loss": validation.loss}
                self.files.gammas.add(place | {"gamma": gamma} | measured | {"test": test.accuracy, "test_loss": test.loss})
        rows = [row for row in self.files.gammas.all if all(row[name] == value for name, value in place.items())]
        return max(rows, key=lambda row: (row[by], -row[f"{by}_loss"]))

    def _repaired(self, networks: Networks, job: Job) -> dict[str, Any]:
        """The average with each channel rescaled as its parents have it.

        What CCA made of a parent no longer computes what the parent did, so its moments are none to go by; the units are
        those of the reference, and so are their moments. That is so of the permuted average, too, in a row of its own.
        """
        alignment, said = self._alignment(CCA if job.method == CCA_REPAIR else PERMUTED, job.models)
        p, models = self.problem, networks.aligned(alignment, range(job.models))
        like = models if job.method == PERMUTED_REPAIR else models[:1]
        found = nm.repair(p.network.apply, p.graph, nm.Average()(nm.stack_models(models)), like, p.measuring)
        metrics = p.tested(found.variables)
        return _row(metrics.accuracy, metrics.loss, chosen=said)

    def _tuned(self, networks: Networks, job: Job) -> dict[str, Any]:
        """All weights learned from some labelled images, at the rate that validation data choose."""
        s, p, start, said = self.settings, self.problem, networks.models[0], ""
        if job.method == TUNED_ONE and self.block.split == "same" and self._one:  # of all numbers of networks the same
            return dict(self._one)
        if job.method != TUNED_ONE:
            alignment, said = self._alignment(CCA if job.method == TUNED_CCA else PERMUTED, job.models)
            start = networks.merged(alignment, range(job.models))
        batches = functools.partial(p.batches, p.labelled(s.labelled), s.batch, seed=p.seed)
        budget = Budget(s.steps, further=s.further)
        learned = budget.tuned(start, p.loss, None, batches=batches, held_out=p.validation, rates=s.rates)
        metrics = p.tested(p.renewed(learned.theta))
        row = _row(metrics.accuracy, metrics.loss, chosen=said, labelled=s.labelled, rate=learned.rate)
        self._one = row if job.method == TUNED_ONE else self._one
        return row

    def _spectra(self) -> None:
        """Correlations between the first two networks, layer by layer."""
        rows, two = self.files.spectra, min(self.block.counts)
        if any(all(row[name] == value for name, value in self.place.items()) for row in rows.all):
            return
        for depth, (node, found) in enumerate(spectra(self.networks(two)).items(), 1):
            rows.add(self.place | {"node": node, "depth": depth} | found)


def _level(networks: Networks, job: Job) -> dict[str, Any]:
    """The networks themselves, the best of them on validation data, and the mean of their logits."""
    n, labels = job.models, np.concatenate([labels for _, labels in networks.problem.test])
    if job.method == ENSEMBLE:
        return _row(*_metrics(networks.logits[:n].mean(0), labels))
    each = [_metrics(logits, labels) for logits in networks.logits[:n]]
    if job.method == BEST:
        return _row(*each[_ranked(networks, n)[0]])
    mean = np.mean(each, axis=0).tolist()
    return _row(*mean, each=[round(accuracy, 4) for accuracy, _ in each])


def _ranked(networks: Networks, n: int) -> list[int]:
    """The first n networks, by accuracy on validation data, the best first."""
    return sorted(range(n), key=lambda k: (-networks.judged[k].accuracy, networks.judged[k].loss))


def _references(networks: Networks, job: Job) -> list[int]:
    """Which networks are the reference, one after another."""
    if job.reference == FIRST:
        return [0]
    ranked = _ranked(networks, job.models)
    return {GOOD: ranked[:1], BAD: ranked[-1:], EVERY: list(range(job.models))}[job.reference]


def _order(reference: int, count: int) -> list[int]:
    """The networks with the reference in front."""
    return [reference, *(k for k in range(count) if k != reference)]


def _metrics(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return float((logits.argmax(-1) == labels).mean()), float(loss)


def _row(accuracy: float, loss: float, **columns: Any) -> dict[str, Any]:
    return {"accuracy": accuracy, "loss": loss, "chosen": "", "labelled": 0, "rate": "", "each": [], **columns}
