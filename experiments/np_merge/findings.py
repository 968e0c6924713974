"""What was expected and what came out, each claim judged by the rows: by paired differences over seeds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.claims import Claim as Said
from experiments.claims import Marked, marked
from experiments.differences import Difference
from experiments.np_merge.results import Results, partner
from experiments.np_merge.settings import (
    ACTIVATIONS,
    AVERAGE,
    BEST,
    CCA,
    CHANNELS,
    COMMON,
    CONTROL,
    ENSEMBLE,
    FISHER,
    FISHER_CONTROL,
    FROM_FISHER,
    LONG_CONTROL,
    LONG_PAIRS,
    ONE,
    OWN,
    PAIRS,
    PARAMETERS,
    PLAIN,
    SCALAR,
    SCRATCH,
    TENSORS,
    WEIGHTS,
    ZIPIT,
    Job,
)
from experiments.np_merge.tables import axis as axis_of
from experiments.np_merge.tables import percent
from npmerge.reports.tables import markdown_table


@dataclass(frozen=True)
class Claim:
    """That one method has a higher test accuracy than another at the same points, or one start, or a question.

    Attributes:
        expected: in words.
        better: a method, a start or an initialisation.
        than: another.
        sign: 1 if the first is expected to be higher, -1 if lower, 0 for an open question.
        axis: the column of the rows in which the two differ.
        fixed: what other columns must be.
    """

    expected: str
    better: str
    than: str
    sign: int = 0
    axis: str = "method"
    fixed: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """What is subtracted from what."""
        of = f" ({', '.join(value for _, value in self.fixed)})" if self.fixed else ""
        return f"{self.better} minus {self.than}{of}"

    def pairs(self, places: Sequence[Job]) -> list[tuple[Job, Job]]:
        """The points that are compared."""
        mine = [x for x in places if getattr(x, self.axis) == self.better and all(getattr(x, k) == v for k, v in self.fixed)]
        other: dict[str, Any] = {self.axis: self.than}
        return [(x, partner(x, self.than) if self.axis == "method" else x._replace(**other)) for x in mine]


OF_AVERAGE, OF_MERGE = (("method", AVERAGE),), (("method", PARAMETERS),)
ALIGNED = "Question: does it still matter after learning?"

CLAIMS = (
    Claim("Expected, from the paper: NP Merge improves on the average that it starts from.", PARAMETERS, AVERAGE, 1),
    Claim(
        "Expected here: it stays below its control, the same average with all weights fine-tuned: as many numbers, no box.",
        PARAMETERS, CONTROL, -1,
    ),
    Claim("Question: is it worth more than fine-tuning one of the networks?", PARAMETERS, ONE),
    Claim("Expected: it is worth more than the labelled images alone.", PARAMETERS, SCRATCH, 1),
    Claim("Question: is the merge above the best of its networks?", PARAMETERS, BEST),
    Claim('Expected, from the paper: it "approaches" the ensemble, so it stays below.', PARAMETERS, ENSEMBLE, -1),
    Claim("Expected, from the paper: the more coefficients the better.", TENSORS, SCALAR, 1),
    Claim("The same, from tensors to channels.", CHANNELS, TENSORS, 1),
    Claim("The same, from channels to parameters.", PARAMETERS, CHANNELS, 1),
    Claim("Expected: alignment raises the average.", ACTIVATIONS, PLAIN, 1, "start", OF_AVERAGE),
    Claim(ALIGNED, ACTIVATIONS, PLAIN, 0, "start", OF_MERGE),
    Claim("Question: activations or weights to align by?", ACTIVATIONS, WEIGHTS, 0, "start", OF_AVERAGE),
    Claim("Expected, from CCA Merge (Horoi et al. 2024): CCA above permutations.", CCA, ACTIVATIONS, 1, "start", OF_AVERAGE),
    Claim(ALIGNED, CCA, ACTIVATIONS, 0, "start", OF_MERGE),
    Claim("Expected, from ZipIt (Stoica et al. 2024): ZipIt above permutations.", ZIPIT, ACTIVATIONS, 1, "start", OF_AVERAGE),
    Claim(ALIGNED, ZIPIT, ACTIVATIONS, 0, "start", OF_MERGE),
    Claim(
        "Expected: without alignment, networks of one initialisation average better than strangers.",
        COMMON, OWN, 1, "initialisation", (*OF_AVERAGE, ("start", PLAIN)),
    ),
    Claim(ALIGNED, COMMON, OWN, 0, "initialisation", (*OF_MERGE, ("start", PLAIN))),
    Claim("Question: more than two networks jointly or in pairs, with as many steps in all?", PARAMETERS, PAIRS),
    Claim("The same with as many steps for each pair, beside a control as long.", LONG_PAIRS, LONG_CONTROL),
    Claim("The paper's open question: Fisher as a closed form, beside the average.", FISHER, AVERAGE),
    Claim("The paper's open question: NP Merge from the coefficients of Fisher, or from one half?", FROM_FISHER, PARAMETERS),
    Claim("The control of that: all weights fine-tuned from the Fisher merge, or from the average?", FISHER_CONTROL, CONTROL),
    Claim("NP Merge from Fisher beside its own control.", FROM_FISHER, FISHER_CONTROL),
)  # fmt: skip
MERGE_BESIDE_CONTROL, FISHER_BESIDE_HALF = Claim("", PARAMETERS, CONTROL), Claim("", FROM_FISHER, PARAMETERS)
MERGE_BESIDE_SCRATCH = Claim("", PARAMETERS, SCRATCH)

WHOLE = (", same", ", 80-20")
"""Ends of the names of settings in which every network saw all classes."""


def in_short(results: Results) -> Iterator[str]:
    """What a reader should know first."""
    beside = _judged(results, Claim("", PARAMETERS, CONTROL))
    parents = {name: x for name, x in _judged(results, Claim("", PARAMETERS, BEST)).items() if name.endswith(WHOLE)}
    start = _judged(results, Claim("", FROM_FISHER, PARAMETERS))
    if beside:
        yield f"A coefficient for each parameter beside its control, all weights of the same average: {_verdicts(beside)}."
    if parents:
        yield (
            "Where networks saw all classes (the same images, 80-20), beside the network that validation chooses: "
            f"{_verdicts(parents)}."
        )
    if start:
        yield f"The coefficients of Fisher as the start, beside one half: {_verdicts(start)}."


def findings(results: Results) -> Iterator[str]:
    """A line for each claim that the rows have something to say of."""
    for claim in CLAIMS:
        if found := _judged(results, claim):
            yield f"{claim.expected} {_sum(claim, found)}"


def claims(results: Results) -> Iterator[Marked]:
    """What is expected, with its mark; settings are tasks and splits."""
    for claim in (x for x in CLAIMS if x.sign):
        found = _judged(results, claim).items()
        better, than = claim.name.split(" minus ")
        if (judged := marked(Said("NP Merge", claim.expected, better, than, claim.sign), found)) is not None:
            yield judged


def differences(results: Results) -> list[str]:
    """Lines of a table: for each claim, task and split the difference of accuracies, and of losses."""
    places = [(name, several) for name, several in _by_split(results) if any(map(results.values, several))]
    lines = [(claim.name, *(_cell(results, claim, several) for _, several in places)) for claim in CLAIMS]
    kept = [line for line in lines if set(line[1:]) != {"-"}]
    return markdown_table(("test accuracy, points; loss", *(name for name, _ in places)), kept)


def _cell(results: Results, claim: Claim, places: list[Job]) -> str:
    accuracy, loss = (results.difference(claim.pairs(places), column) for column in ("accuracy", "loss"))
    if accuracy is None or loss is None:
        return "-"
    points = f", {accuracy.points} points of the factorial" if accuracy.points > 1 else ""
    return f"{accuracy.told(unit='')}, {accuracy.word}; {loss.told(scale=1, unit='')}, {loss.word}{points}"


def by(results: Results, claim: Claim, axis: str) -> list[str]:
    """Lines of a table: for each task what a claim is about, at each value of a column of the rows; none for less than two."""
    values = _values(results, axis)
    lines = []
    for name, places in _places(results):
        cells = [results.difference(claim.pairs([x for x in places if _at(results, x, axis, v)])) for v in values]
        if sum(cell is not None for cell in cells) > 1:
            lines.append((name, *("-" if cell is None else f"{cell.told(unit='')}, {cell.word}" for cell in cells)))
    words = [f"{percent(v)} labelled" if axis == "labelled" else f"{v} networks" if axis == "models" else v for v in values]
    return [*markdown_table((f"{claim.name}, points", *words), lines), ""] if lines else []


def _values(results: Results, axis: str) -> list[Any]:
    """All that blocks have along an axis, in the order of the first that has them; numbers ascending."""
    found = dict.fromkeys(v for block in results.settings.blocks for v in axis_of(block, axis))
    return list(found) if axis == "split" else sorted(found)


def _at(results: Results, place: Job, axis: str, value: Any) -> bool:
    return getattr(place, axis) == (results.point(place, value).labelled if axis == "labelled" else value)


def _places(results: Results) -> Iterator[tuple[str, list[Job]]]:
    for task in results.settings.tasks:
        places = [job for block in results.settings.blocks if block.task == task.name for job in results.jobs(block)]
        yield f"{task.network} on {task.data}", list(dict.fromkeys(places))


def _by_split(results: Results) -> Iterator[tuple[str, list[Job]]]:
    """Networks that saw all classes and networks that did not answer most questions in opposite ways: none is pooled."""
    for name, places in _places(results):
        for division in dict.fromkeys(place.split for place in places if place.split):
            yield f"{name}, {division}", [place for place in places if place.split == division]


def _judged(results: Results, claim: Claim) -> dict[str, Difference]:
    """By task and split how much more accurate the first is, where there are rows of both."""
    found = {name: results.difference(claim.pairs(places)) for name, places in _by_split(results)}
    return {name: difference for name, difference in found.items() if difference is not None}


def _verdicts(found: dict[str, Difference]) -> str:
    """Of several seeds: in how many settings, the range of the means, and which are told apart."""
    several = {name: x for name, x in found.items() if len(x.values) > 1}
    shown = several or found
    means = [100 * x.mean for x in shown.values()]
    apart = [f"{name} {100 * x.mean:+.1f} ({x.word})" for name, x in shown.items() if x.verdict]
    kind = "tasks and splits of several seeds" if several else "tasks and splits of one seed"
    told = f"told apart: {'; '.join(apart)}" if apart else "none told apart"
    return f"{min(means):+.1f} to {max(means):+.1f} points over {len(shown)} {kind}, {told}"


def _sum(claim: Claim, named: dict[str, Difference]) -> str:
    """How many tasks and splits say what, and the differences there."""
    found = list(named.values())
    several = [f for f in found if len(f.values) > 1]
    counts = {sign: sum(f.verdict == sign for f in several) for sign in (1, -1, 0)}
    total = f"of {len(several)} setting{'s' * (len(several) > 1)}"
    means = [100 * f.mean for f in found]
    apart = [f"{name} {100 * f.mean:+.1f}" for name, f in named.items() if f.verdict]
    told = f"{min(means):+.1f} to {max(means):+.1f}" if len(found) > 1 else f"{means[0]:+.1f}"
    told += f"; told apart: {', '.join(apart)}" if apart else ""
    if not several:
        said = "one seed, which tells nothing apart"
    elif claim.sign == 0:
        said = f"higher on {counts[1]}, lower on {counts[-1]}, not told apart on {counts[0]} {total}"
    else:
        said = f"so on {counts[claim.sign]}, the opposite on {counts[-claim.sign]}, not told apart on {counts[0]} {total}"
    if several and (alone := len(found) - len(several)):
        said += f"; one seed on {alone} more"
    return f"Found: {said} ({claim.name}, points: {told})."
