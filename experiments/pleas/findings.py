"""What was expected of PLeaS and what came out, in words that follow the rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.claims import Claim as Said
from experiments.claims import Marked, marked
from experiments.differences import JUDGED, Difference, judged
from experiments.pleas.results import Results, Side
from experiments.pleas.settings import (
    BY_WEIGHTS,
    CLOSED,
    CONTROL,
    DISTILLED,
    ENSEMBLE,
    GRADIENT,
    NOISE,
    OWN,
    PARENTS,
    PARTIAL,
    PLAIN,
    REGMEAN,
    SEQUENTIAL,
    SOLVED,
    TUNED,
    WEIGHTS,
    ZIPPED,
)
from npmerge.reports.tables import markdown_table

OTHER = None
"""The source that is a data set of other images."""

SHARED, BOTH = ("domains", "halves"), ("domains", "halves", "classes")
"""Divisions of data where networks share their labels, and all."""


@dataclass(frozen=True)
class Claim:
    """That one side has a higher test accuracy than another, or a question.

    Attributes:
        expected: in words.
        better: a side.
        than: another.
        sign: 1 if the first is expected to be higher, -1 if lower, 0 for an open question.
        sizes: of the merges that are compared.
        margin: what is added to the difference before it is judged, as a fraction.
        published: the divisions of data for which the paper says so.
    """

    expected: str
    better: Side
    than: Side
    sign: int = 0
    sizes: Literal["one", "least", "between", "merged"] = "one"
    margin: float = 0.0
    published: tuple[str, ...] = ()

    def shared(self, results: Results) -> list[int]:
        """Those sizes, as shared stages."""
        sizes = {"one": results.sizes[:1], "least": results.between[:1], "between": results.between}
        return sizes.get(self.sizes, results.sizes[:-1])

    @property
    def title(self) -> str:
        """What is subtracted from what."""
        margin = f", plus {100 * self.margin:g} points" if self.margin else ""
        return f"{told(self.better)} minus {told(self.than)}{margin}"


CLAIMS = (
    Claim("RegMean is better than the plain average", Side(REGMEAN), Side(PLAIN), 1, published=SHARED),
    Claim("a permutation by weights (Git Re-Basin) is better than RegMean", Side(WEIGHTS), Side(REGMEAN), 1, published=SHARED),
    Claim("so is a permutation by activations", Side(PARTIAL), Side(REGMEAN), 1),
    Claim("ZipIt is better than a permutation by weights (Git Re-Basin)", Side(ZIPPED), Side(WEIGHTS), 1, published=SHARED),
    Claim("and than a permutation by activations", Side(ZIPPED), Side(PARTIAL), 1),
    Claim("PLeaS is better than ZipIt at the size of one network", Side(GRADIENT), Side(ZIPPED), 1, published=BOTH),
    Claim("PLeaS is better than ZipIt at equal operations between one network and both", Side(GRADIENT), Side(ZIPPED), 1,
          "between", published=BOTH),
    Claim("is it the matching, without the least squares?", Side(PARTIAL), Side(ZIPPED), 0, "between"),
    Claim("the least squares improve on the weights of the matching", Side(CLOSED), Side(PARTIAL), 1, "merged"),
    Claim("is the minimum better than the published steps towards it?", Side(CLOSED), Side(GRADIENT), 0, "merged"),
    Claim("do layers gain that read what the merge computes?", Side(SEQUENTIAL), Side(CLOSED), 0, "merged"),
    Claim("how far is it from the ensemble at the least size above one network? Published: near, with a fifth more operations",
          Side(GRADIENT), Side(ENSEMBLE), 0, "least"),
    Claim("the ensemble stays better than sequential least squares", Side(SEQUENTIAL), Side(ENSEMBLE), -1, "between"),
    Claim("with other images than the task's, matched by weights, PLeaS loses accuracy", Side(GRADIENT, OTHER),
          Side(GRADIENT), -1, "between"),
    Claim("with other images than the task's PLeaS loses less than two points", Side(GRADIENT, OTHER), Side(GRADIENT), 1,
          "between", 0.02, published=SHARED),
    Claim("how much of that is the matching: by weights, with the task's own images", Side(GRADIENT, BY_WEIGHTS),
          Side(GRADIENT), 0, "between"),
    Claim("how much the images: both matched by weights", Side(GRADIENT, OTHER), Side(GRADIENT, BY_WEIGHTS), 0, "between"),
    Claim("in closed form: the matching", Side(CLOSED, BY_WEIGHTS), Side(CLOSED), 0, "between"),
    Claim("in closed form: the images", Side(CLOSED, OTHER), Side(CLOSED, BY_WEIGHTS), 0, "between"),
    Claim("sequential: the matching", Side(SEQUENTIAL, BY_WEIGHTS), Side(SEQUENTIAL), 0, "between"),
    Claim("sequential: the images", Side(SEQUENTIAL, OTHER), Side(SEQUENTIAL, BY_WEIGHTS), 0, "between"),
    Claim("is it without the task's images still better than the permutation by weights?", Side(CLOSED, OTHER),
          Side(PARTIAL, OTHER), 0, "between"),
    Claim("other images are better than noise", Side(CLOSED, OTHER), Side(CLOSED, NOISE), 1, "between"),
    Claim("control: is PLeaS as published worth more than distilling both networks into the permuted average, all weights, at "
          "a rate and a moment that validation data choose?", Side(GRADIENT), Side(DISTILLED), 0, "merged"),
    Claim("control: is the closed form worth more?", Side(CLOSED), Side(DISTILLED), 0, "merged"),
    Claim("control: are sequential least squares worth more?", Side(SEQUENTIAL), Side(DISTILLED), 0, "merged"),
    Claim("control: is what the least squares give still the better start once both are fine-tuned?", Side(TUNED),
          Side(CONTROL)),
    Claim("a merge of one network's size stays below its networks", Side(SEQUENTIAL), Side(PARENTS), -1),
)  # fmt: skip


def findings(results: Results) -> list[str]:
    """Lines: a table of the claims that the rows have something to say of, and sentences."""
    rows = []
    for claim in CLAIMS:
        if known := _by_setting(results, claim):
            who = "the paper: " if claim.published else "expected: " if claim.sign else ""
            rows.append(judged(f"{who}{claim.expected}", claim.title, known))
    sentences = [f"- {line}" for line in (*_alike(results), *_of_the_gap(results))]
    return [*markdown_table(JUDGED, rows), *([""] if sentences else []), *sentences]


def claims(results: Results) -> Iterator[Marked]:
    """What the paper says, with its mark; settings are tasks and sizes."""
    for claim in (x for x in CLAIMS if x.published):
        better, than = claim.title.split(" minus ")
        said = Said("Nasery et al. 2024 (PLeaS), arXiv 2407.02447", claim.expected, better, than, claim.sign)
        tasks = [task for task in results.tasks if results.task(task)["division"] in claim.published]
        if (found := marked(said, _by_setting(results, claim, tasks).items())) is not None:
            yield found


def differences(results: Results) -> list[str]:
    """Lines of a table: for each claim and task the difference of accuracies, size by size."""
    rows = []
    for claim in CLAIMS:
        cells = []
        for task in results.tasks:
            found = {shared: _in_setting(results, claim, task, shared) for shared in claim.shared(results)}
            parts = (f"{results.flops(task, s):.2f}: {x.told(unit='')}, {x.word}" for s, x in found.items() if x is not None)
            cells.append("; ".join(parts))
        rows.append((claim.title, *cells))
    header = ("test accuracy, points, by size", *map(results.title, results.tasks))
    return markdown_table(header, [row for row in rows if any(row[1:])])


def _by_setting(results: Results, claim: Claim, tasks: Sequence[str] | None = None) -> dict[str, Difference]:
    """By task and size, of all tasks if none are given."""
    found = {
        f"{results.title(task)}, size {results.flops(task, shared):.2f}": _in_setting(results, claim, task, shared)
        for task in (results.tasks if tasks is None else tasks)
        for shared in claim.shared(results)
    }
    return {name: x for name, x in found.items() if x is not None}


def _in_setting(results: Results, claim: Claim, task: str, shared: int) -> Difference | None:
    found = results.difference(claim.better, claim.than, [shared], tasks=[task])
    return found and found._replace(values=tuple(value + claim.margin for value in found.values))


def _alike(results: Results) -> Iterator[str]:
    """Whether partial matching keeps other units apart than ZipIt."""
    for task in results.tasks:
        same = [
            shared
            for shared in results.between
            if all(
                abs(results.mean(task, Side(PARTIAL), shared, column) - results.mean(task, Side(ZIPPED), shared, column)) < 1e-3
                for column in ("flops", "parameters")
            )
        ]
        if same:
            yield (
                f"{results.title(task)}: at size {' and '.join(f'{results.flops(task, s):.2f}' for s in same)} PLeaS keeps "
                "apart as many operations and parameters as ZipIt, the same stages, which can be run as branches: without "
                "least squares what differs is how units are matched."
            )


def _of_the_gap(results: Results) -> Iterator[str]:
    """How much of the way from the permuted average to the ensemble a merge of any size has gone."""
    for task in results.tasks:
        low, high = results.mean(task, Side(PARTIAL), results.sizes[0]), results.mean(task, Side(ENSEMBLE), 0)
        gap = high - low
        parts = []
        for method in (PARTIAL, *SOLVED, ZIPPED):
            ways = [_way(results, task, method, shared, (low, gap)) for shared in results.sizes[:-1]]
            if any(ways):
                parts.append(f"{method} {', '.join(filter(None, ways))}")
        if gap > 0 and parts:
            yield (
                "Of the way from the permuted average to the ensemble, "
                f"{results.title(task)} ({100 * low:.1f} to {100 * high:.1f} %): {'; '.join(parts)}."
            )


def _way(results: Results, task: str, method: str, shared: int, line: Sequence[float]) -> str:
    found = results.mean(task, Side(method), shared)
    return "" if np.isnan(found) else f"{100 * (found - line[0]) / line[1]:.0f} % at {results.flops(task, shared):.2f}"


def told(side: Side) -> str:
    """A side in words: with other images, and where units are matched by weights, no permutation is by activations."""
    method = WEIGHTS if side.method == PARTIAL and side.source != OWN else side.method
    sources = {OTHER: " (other images)", NOISE: " (noise)", BY_WEIGHTS: " (matched by weights)"}
    return method + sources.get(side.source, "")
