"""What was expected of PLeaS and what came out, in words that follow the rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.claims import Claim as Said
from experiments.claims import Marked, marked
from experiments.differences import Difference, settings_told
from experiments.pleas.results import Results, Side
from experiments.pleas.settings import (
    CLOSED,
    CONTROL,
    DISTILLED,
    ENSEMBLE,
    GRADIENT,
    NOISE,
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
    """

    expected: str
    better: Side
    than: Side
    sign: int = 0
    sizes: Literal["one", "between", "merged"] = "one"
    margin: float = 0.0

    def shared(self, results: Results) -> list[int]:
        """Those sizes, as shared stages."""
        return {"one": results.sizes[:1], "between": results.between, "merged": results.sizes[:-1]}[self.sizes]

    @property
    def title(self) -> str:
        """What is subtracted from what."""
        margin = f", plus {100 * self.margin:g} points" if self.margin else ""
        return f"{_told(self.better)} minus {_told(self.than)}, {_SIZES[self.sizes]}{margin}"


_SIZES = {"one": "size of one network", "between": "sizes in between", "merged": "all sizes below both"}

CLAIMS = (
    Claim("Expected, as published: RegMean is better than the plain average.", Side(REGMEAN), Side(PLAIN), 1),
    Claim("Expected, as published: a permutation by weights is better than RegMean.", Side(WEIGHTS), Side(REGMEAN), 1),
    Claim("The same, of a permutation by activations.", Side(PARTIAL), Side(REGMEAN), 1),
    Claim("Expected, as published: ZipIt is better than a permutation.", Side(ZIPPED), Side(PARTIAL), 1),
    Claim("Expected, as published: PLeaS is better than ZipIt at one network's size.", Side(GRADIENT), Side(ZIPPED), 1),
    Claim("The same at equal operations between one network and both.", Side(GRADIENT), Side(ZIPPED), 1, "between"),
    Claim("The same without the least squares: is it the matching?", Side(PARTIAL), Side(ZIPPED), 0, "between"),
    Claim("Expected: the least squares improve on the weights of the matching.", Side(CLOSED), Side(PARTIAL), 1, "merged"),
    Claim("Question: is the minimum better than the published steps towards it?", Side(CLOSED), Side(GRADIENT), 0, "merged"),
    Claim("Question: do layers gain that read what the merge computes?", Side(SEQUENTIAL), Side(CLOSED), 0, "merged"),
    Claim("Expected: whatever is solved, the ensemble stays better.", Side(SEQUENTIAL), Side(ENSEMBLE), -1, "between"),
    Claim("Expected, as published: with other images it loses accuracy.", Side(GRADIENT, OTHER), Side(GRADIENT), -1, "between"),
    Claim("Expected, as published: but less than two points.", Side(GRADIENT, OTHER), Side(GRADIENT), 1, "between", 0.02),
    Claim("The same in closed form: does it lose?", Side(CLOSED, OTHER), Side(CLOSED), 0, "between"),
    Claim("The same of sequential least squares.", Side(SEQUENTIAL, OTHER), Side(SEQUENTIAL), 0, "between"),
    Claim("Question: is it then still better than a permutation by weights?", Side(CLOSED, OTHER), Side(PARTIAL, OTHER),
          0, "between"),
    Claim("Expected: other images are better than noise.", Side(CLOSED, OTHER), Side(CLOSED, NOISE), 1, "between"),
    Claim("Control: is it worth more than learning as published from the same images without labels, all weights?",
          Side(GRADIENT), Side(DISTILLED), 0, "merged"),
    Claim("The same of the closed form.", Side(CLOSED), Side(DISTILLED), 0, "merged"),
    Claim("The same of sequential least squares.", Side(SEQUENTIAL), Side(DISTILLED), 0, "merged"),
    Claim("Control: is what the least squares give still the better start once both are fine-tuned?", Side(TUNED),
          Side(CONTROL)),
    Claim("Expected: a merge of one network's size stays below its networks.", Side(SEQUENTIAL), Side(PARENTS), -1),
)  # fmt: skip


def findings(results: Results) -> Iterator[str]:
    """A line for each claim that the rows have something to say of."""
    for claim in CLAIMS:
        if line := _judged(results, claim):
            yield line
    yield from _of_the_gap(results)


def claims(results: Results) -> Iterator[Marked]:
    """What is expected, with its mark; settings are tasks."""
    for claim in (x for x in CLAIMS if x.sign):
        found = ((results.title(task), _in_task(results, claim, task)) for task in results.tasks)
        better, than = claim.title.split(" minus ")
        if (judged := marked(Said("PLeaS", claim.expected, better, than, claim.sign), found)) is not None:
            yield judged


def differences(results: Results) -> list[str]:
    """Lines of a table: for each claim and task the difference of accuracies."""
    rows = []
    for claim in CLAIMS:
        found = [_in_task(results, claim, task) for task in results.tasks]
        rows.append((claim.title, *("" if x is None else f"{x.told(unit='')}, {x.word}" for x in found)))
    header = ("test accuracy, points", *map(results.title, results.tasks))
    return markdown_table(header, [row for row in rows if any(row[1:])])


def _judged(results: Results, claim: Claim) -> str:
    known = [found for task in results.tasks if (found := _in_task(results, claim, task)) is not None]
    if not known:
        return ""
    over_all = _shifted(results.difference(claim.better, claim.than, claim.shared(results)), claim.margin)
    assert over_all is not None
    told = f"{claim.title}: {over_all.told()} over {over_all.points} merge{'s' * (over_all.points > 1)}"
    if len(over_all.values) < 2:
        return f"{claim.expected} One seed cannot tell; {told}."
    tasks = f"task{'s' * (len(known) > 1)}"
    return f"{claim.expected} Found: {settings_told(known, claim.sign)} {tasks}. {told}."


def _in_task(results: Results, claim: Claim, task: str) -> Difference | None:
    return _shifted(results.difference(claim.better, claim.than, claim.shared(results), tasks=[task]), claim.margin)


def _shifted(found: Difference | None, margin: float) -> Difference | None:
    return found and found._replace(values=tuple(value + margin for value in found.values))


def _of_the_gap(results: Results) -> Iterator[str]:
    """How much of the way from the permuted average to the ensemble a merge of any size has gone."""
    for task in results.tasks:
        low, high = results.mean(task, Side(PARTIAL), results.sizes[0]), results.mean(task, Side(ENSEMBLE), 0)
        gap = high - low
        told = []
        for method in (PARTIAL, *SOLVED, ZIPPED):
            ways = [_way(results, task, method, shared, (low, gap)) for shared in results.sizes[:-1]]
            if any(ways):
                told.append(f"{method} {', '.join(filter(None, ways))}")
        if gap > 0 and told:
            yield (
                "As published a size of 1.2 is near the ensemble. Of the way from the permuted average to the ensemble, "
                f"{results.title(task)} ({100 * low:.1f} to {100 * high:.1f} %): {'; '.join(told)}."
            )


def _way(results: Results, task: str, method: str, shared: int, line: Sequence[float]) -> str:
    found = results.mean(task, Side(method), shared)
    return "" if np.isnan(found) else f"{100 * (found - line[0]) / line[1]:.0f} % at {results.flops(task, shared):.2f}"


def _told(side: Side) -> str:
    sources = {OTHER: " (other images)", NOISE: " (noise)"}
    return side.method + sources.get(side.source, "")
