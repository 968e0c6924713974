"""What the paper found and what came out here, in words that follow the rows."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from experiments.claims import Claim, Marked, marked
from experiments.compositional.results import OVER_EXPERTS, SCORES, Results
from experiments.compositional.settings import BASE, CONTROLS, LEARNED, MULTITASK, PAPER
from experiments.differences import Difference, paired, settings_told
from experiments.run import points

Told = Iterable[tuple[str, Difference | None]]
"""By the name of a setting how much one row has beyond another."""

EXPECTED = {"images": 1, "generation": 1, "text": -1}
"""The sign of the correlation between held-in and generalisation accuracy in the paper, by setting."""


PUBLISHED = "Tam et al. 2024, arXiv 2409.18314"


def claims(results: Results) -> Iterator[Marked]:
    """The paper's findings, with their marks; settings are tasks."""
    names = [task["name"] for task in results.tasks]
    texts = [task["name"] for task in results.tasks if task["setting"] == "text"]
    correlations = {x: tuple(results.correlation(x, results.published(x)).values()) for x in names}
    found = {x: Difference(values, 1) if values else None for x, values in correlations.items()}

    def against(method: str, than: str, column: str, tasks: Sequence[str]) -> Told:
        return [(x, results.difference(method, than, column, [x])) for x in tasks]

    told: list[tuple[Claim, Told]] = [
        (Claim(PUBLISHED, "held-in and generalisation accuracy go together, images", "rank correlation", "zero", unit=""),
         [(x, found[x]) for x in names if x not in texts]),
        (Claim(PUBLISHED, "they go against each other, text", "rank correlation", "zero", -1, unit=""),
         [(x, found[x]) for x in texts]),
        (Claim(PUBLISHED, "more models cost held-in accuracy", "held-in, less the experts, of all", "of two", -1),
         [(x, results.more_models(x, OVER_EXPERTS)) for x in names]),
        (Claim(PUBLISHED, "more models buy generalisation", "generalisation of all networks", "of two"),
         [(x, results.more_models(x, "generalisation")) for x in names]),
        (Claim(PUBLISHED, "merges of text generalise worse than the base", "generalisation of the average", BASE, -1),
         against("Average", BASE, "generalisation", texts)),
        (Claim(PUBLISHED, "Fisher generalises better than RegMean in text", "generalisation of Fisher", "RegMean"),
         against("Fisher", "RegMean", "generalisation", texts)),
    ]  # fmt: skip
    told += [
        (Claim(PUBLISHED, f"{x} is ahead of the average held-in", f"held-in of {x}", "the average"),
         against(x, "Average", "held_in", names)) for x in ("RegMean", "MaTS")
    ]  # fmt: skip
    for claim, rows in told:
        if (judged := marked(claim, rows)) is not None:
            yield judged


def findings(results: Results) -> Iterator[str]:
    """A line for each finding of the paper, and for what was asked here."""
    for each in (_correlations, _best_held_in, _below_base, _above_multitask, _more_models, _costs, _sensitivity, _learned):
        yield from each(results)


def _correlations(results: Results) -> Iterator[str]:
    for task in results.tasks:
        name, sign = task["name"], EXPECTED[task["setting"]]
        sides = {"merges without learning": results.merges(name), "methods of the paper": results.published(name)}
        told = [f"{_correlation(results, name, x)}, over {len(x)} {words}" for words, x in sides.items() if len(x) > 2]
        if told:
            yield (
                f"Expected, {name}: held-in and generalisation accuracy are {'' if sign > 0 else 'anti-'}correlated over "
                f"merges. Found: {'; '.join(told)}. Those that come to the same are one."
            )


def _correlation(results: Results, task: str, methods: Sequence[str]) -> str:
    values = tuple(results.correlation(task, methods).values())
    if not values:
        return "nothing to say, as all are within two standard errors of a test accuracy, or come to one or two points"
    found = Difference(values, 1)
    said = {1: "positive", -1: "negative", 0: "not told from zero"}[found.verdict] if len(values) > 1 else "one seed"
    some = f" in {len(values)} of {len(results.seeds)} seeds" if len(values) < len(results.seeds) else ""
    return f"rank correlation {found.told(scale=1, unit='')}{some}, {said}"


def _best_held_in(results: Results) -> Iterator[str]:
    for task in results.tasks:
        name, merges = task["name"], results.published(task["name"])
        if not merges:
            continue
        places = [
            f"{method} held-in {_place(results, name, method, 'held_in')}, in generalisation "
            f"{_place(results, name, method, 'generalisation')}"
            for method in ("RegMean", "MaTS", "Fisher") if method in merges
        ]  # fmt: skip
        yield (
            f"Expected, {name}: of the paper's methods RegMean and MaTS lead on held-in tasks, not on generalisation. Found: "
            f"{_leader(results, name, 'held_in')} leads held-in, {_leader(results, name, 'generalisation')} in generalisation. "
            f"Against the {len(merges) - 1} others: {'; '.join(places) or 'none of these is here'}."
        )


def _leader(results: Results, task: str, column: str) -> str:
    """The method of the paper of highest mean."""
    best = max(results.published(task), key=lambda name: results.mean(task, name, column))
    return f"{best} ({100 * results.mean(task, best, column):.1f} %; {_place(results, task, best, column)})"


def _place(results: Results, task: str, method: str, column: str) -> str:
    """How many methods of the paper it is above and below, as far as they are told apart."""
    others = [name for name in results.published(task) if name != method]
    return _verdicts(results.difference(method, name, column, [task]) for name in others)


def _verdicts(found: Iterable[Difference | None]) -> str:
    """How many are higher, lower, and not told apart."""
    there = [x for x in found if x is not None]
    return settings_told(there, 0) if any(len(x.values) > 1 for x in there) else "one seed"


def _below_base(results: Results) -> Iterator[str]:
    for task in results.tasks:
        name, merges = task["name"], results.merges(task["name"])
        if not merges:
            continue
        found = _verdicts(results.difference(merge, BASE, SCORES[1], [name]) for merge in merges)
        words = "most merges generalise worse" if task["setting"] == "text" else "merges generalise better"
        level = f"{100 * results.mean(name, BASE, SCORES[1]):.1f} %"
        yield f"Expected, {name}: {words} than the base. Found, against its {level}: {found}."


def _above_multitask(results: Results) -> Iterator[str]:
    for task in results.tasks:
        name, merges = task["name"], results.merges(task["name"])
        if not merges or not results.of(name, MULTITASK):
            continue
        found = [{m: results.difference(m, MULTITASK, column, [name]) for m in merges} for column in SCORES]
        above = [[m for m, x in side.items() if x is not None and x.verdict > 0] for side in found]
        expected = "several merges beat multitask training on both" if task["setting"] == "generation" else "none was stated"
        yield (
            f"Merges beside multitask training, {name}; expected: {expected}. Found held-in: {_verdicts(found[0].values())}, "
            f"above it {_named(above[0])}; in generalisation: {_verdicts(found[1].values())}, above it {_named(above[1])}; in "
            f"both {_named([m for m in above[0] if m in above[1]])}."
        )


def _more_models(results: Results) -> Iterator[str]:
    for task in results.tasks:
        held, general = (results.more_models(task["name"], column) for column in (OVER_EXPERTS, SCORES[1]))
        if held is not None and general is not None:
            yield (
                f"Expected, {task['name']}: merging more networks costs held-in accuracy and buys generalisation. Found, all "
                f"against two: held-in, less each cell's expert, {held.told()} ({held.word}), "
                f"generalisation {general.told()} ({general.word})."
            )


def _costs(results: Results) -> Iterator[str]:
    for task in results.tasks:
        name = task["name"]
        counted = {m: results.cost(name, m) for m in results.published(name) if not results.mean(name, m, "uncounted")}
        counted = {m: cost for m, cost in counted.items() if cost > 0}
        if len(counted) < 2:
            continue
        low, high = min(counted, key=counted.__getitem__), max(counted, key=counted.__getitem__)
        yield (
            f"Expected: costs span almost two orders of magnitude. Found, {name}: from {counted[low]:.1e} operations ({low}) "
            f"to {counted[high]:.1e} ({high}), {math.log10(counted[high] / counted[low]):.1f} orders, of {len(counted)} "
            "methods of the paper that are counted in full."
        )


def _sensitivity(results: Results) -> Iterator[str]:
    for task in results.tasks:
        name = task["name"]
        fields = [pair for pair in results.fields(name) if pair[0] in PAPER]
        ranges = {pair: results.ranges(name, *pair, "held_in") for pair in fields}
        if ranges:
            told = ", ".join(f"{m} {f} {points(x)}" for (m, f), x in sorted(ranges.items(), key=lambda item: -np.mean(item[1])))
            yield (
                f"Expected, {name}: task arithmetic and TIES hang on their scale, DARE little on what it drops. Found, points "
                f"of held-in accuracy between the best and the worst value, with the deviation over seeds: {told}."
            )


def _learned(results: Results) -> Iterator[str]:
    for name in LEARNED:
        parts = []
        for column, words in zip(SCORES, ("held-in", "generalisation"), strict=True):
            found = results.difference(name, CONTROLS[name], column)
            if found is not None:
                parts.append(f"{words} {found.told()} ({found.word})")
        if parts:
            yield f"Control: {name} minus its start fine-tuned by the same objective and budget: {'; '.join(parts)}."
    best = {task["name"]: _best(results, task["name"]) for task in results.tasks}
    pairs = [(results.values(t, LEARNED[0], "held_in"), results.values(t, m, "held_in")) for t, m in best.items() if m]
    found = paired(pair for pair in pairs if all(pair))
    if found is not None:
        yield f"{LEARNED[0]} minus the merge without learning that validation prefers: held-in {found.told()} ({found.word})."


def _best(results: Results, task: str) -> str:
    """The merge of highest accuracy on validation data."""
    merges = results.merges(task)
    return max(merges, key=lambda name: np.nan_to_num(results.mean(task, name, "validation"))) if merges else ""


def _named(names: list[str]) -> str:
    return ", ".join(names) or "none"
