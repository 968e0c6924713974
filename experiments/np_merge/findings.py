"""What was expected and what came out, each claim judged by the rows: by paired differences over seeds."""

from collections.abc import Iterator
from dataclasses import dataclass

from experiments.differences import Difference
from experiments.np_merge.results import Results
from experiments.np_merge.settings import (
    AVERAGE,
    BEST,
    CHANNELS,
    CONTROL,
    ENSEMBLE,
    FISHER,
    FISHER_CONTROL,
    FROM_FISHER,
    LONG_CONTROL,
    LONG_PAIRS,
    ONE,
    PAIRS,
    PARAMETERS,
    SCALAR,
    SCRATCH,
    TENSORS,
    Job,
)
from npmerge.reports.tables import markdown_table


@dataclass(frozen=True)
class Claim:
    """That one method has a higher test accuracy than another, or a question.

    Attributes:
        expected: in words.
        better: a method.
        than: another.
        sign: 1 if the first is expected to be higher, -1 if lower, 0 for an open question.
    """

    expected: str
    better: str
    than: str
    sign: int = 0


CLAIMS = (
    Claim("Expected, from the paper: NP Merge improves on the average that it starts from.", PARAMETERS, AVERAGE, 1),
    Claim("Expected, from the paper: the more coefficients the better.", TENSORS, SCALAR, 1),
    Claim("The same, from tensors to channels.", CHANNELS, TENSORS, 1),
    Claim("The same, from channels to parameters.", PARAMETERS, CHANNELS, 1),
    Claim(
        "Expected here: fine-tuning the average, which has as many numbers and no box around them, is no worse than NP Merge.",
        PARAMETERS, CONTROL, -1,
    ),
    Claim("Question: is it worth more than fine-tuning one of the networks?", PARAMETERS, ONE),
    Claim("Expected: it is worth more than the labelled images alone.", PARAMETERS, SCRATCH, 1),
    Claim("Question: does the merge reach the best of its networks?", PARAMETERS, BEST),
    Claim('Expected, from the paper: it "approaches" the ensemble, so it stays below.', PARAMETERS, ENSEMBLE, -1),
    Claim("Question: more than two networks jointly or in pairs, with as many steps in all?", PARAMETERS, PAIRS),
    Claim("The same with as many steps for each pair, beside a control as long.", LONG_PAIRS, LONG_CONTROL),
    Claim("The paper's open question: Fisher as a closed form, beside the average.", FISHER, AVERAGE),
    Claim("The paper's open question: NP Merge from the coefficients of Fisher, or from one half?", FROM_FISHER, PARAMETERS),
    Claim("The control of that: all weights fine-tuned from the Fisher merge, or from the average?", FISHER_CONTROL, CONTROL),
    Claim("NP Merge from Fisher beside its own control.", FROM_FISHER, FISHER_CONTROL),
)  # fmt: skip


def findings(results: Results) -> Iterator[str]:
    """A line for each claim that the rows have something to say of."""
    for claim in CLAIMS:
        found = [d for _, places in _places(results) if (d := _difference(results, claim, places))]
        if found:
            yield f"{claim.expected} {_sum(claim, found)}"


def differences(results: Results) -> list[str]:
    """Lines of a table: for each claim and task the difference of accuracies, and of losses."""
    places = [(name, several) for name, several in _places(results) if any(map(results.values, several))]
    lines = [
        (f"{claim.better} minus {claim.than}", *(_cell(results, claim, several) for _, several in places)) for claim in CLAIMS
    ]
    kept = [line for line in lines if set(line[1:]) != {"-"}]
    return markdown_table(("test accuracy, points; loss", *(name for name, _ in places)), kept)


def _difference(results: Results, claim: Claim, places: list[Job], column: str = "accuracy") -> Difference | None:
    return results.difference(claim.better, claim.than, places, column)


def _cell(results: Results, claim: Claim, places: list[Job]) -> str:
    accuracy, loss = (_difference(results, claim, places, column) for column in ("accuracy", "loss"))
    if accuracy is None or loss is None:
        return "-"
    points = f", {accuracy.points} points of the factorial" if accuracy.points > 1 else ""
    return f"{accuracy.told(unit='')}, {accuracy.word}; {loss.told(scale=1, unit='')}, {loss.word}{points}"


def by_labels(results: Results, better: str, than: str) -> Iterator[tuple[str, ...]]:
    """Lines of a table: for each task the difference at each labelled fraction."""
    for name, places in _places(results):
        cells = [results.difference(better, than, places, fraction=fraction) for fraction in fractions(results)]
        if sum(cell is not None for cell in cells) > 1:
            yield name, *("-" if cell is None else f"{cell.told(unit='')}, {cell.word}" for cell in cells)


def fractions(results: Results) -> list[float]:
    """All labelled fractions of all blocks."""
    return sorted({fraction for block in results.settings.blocks for fraction in block.labelled})


def _places(results: Results) -> Iterator[tuple[str, list[Job]]]:
    for task in results.settings.tasks:
        places = [job for block in results.settings.blocks if block.task == task.name for job in results.jobs(block)]
        yield f"{task.network} on {task.data}", list(dict.fromkeys(places))


def _sum(claim: Claim, found: list[Difference]) -> str:
    """How many tasks say what, and the differences there."""
    counts = {sign: sum(f.verdict == sign for f in found) for sign in (1, -1, 0)}
    total = f"of {len(found)} task{'s' * (len(found) > 1)}"
    means = ", ".join(f"{100 * f.mean:+.1f}" for f in found)
    beside = f"{claim.better} minus {claim.than}: {means} points"
    if max(len(f.values) for f in found) < 2:
        said = "one seed, which tells nothing apart"
    elif claim.sign == 0:
        said = f"higher on {counts[1]}, lower on {counts[-1]}, not told apart on {counts[0]} {total}"
    else:
        said = f"so on {counts[claim.sign]}, the opposite on {counts[-claim.sign]}, not told apart on {counts[0]} {total}"
    return f"Found: {said} ({beside})."
