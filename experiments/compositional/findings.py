"""What the paper found and what came out here, in words that follow the rows."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from experiments.claims import Claim, Marked, marked
from experiments.compositional.results import SCORES, Results
from experiments.compositional.settings import BASE, CONTROLS, LEARNED, MULTITASK, PAPER
from experiments.differences import Difference, paired

Told = Iterable[tuple[str, Difference | None]]
"""By the name of a setting how much one row has beyond another."""

EXPECTED = {"images": 1, "generation": 1, "text": -1}
"""The sign of the correlation between held-in and generalisation accuracy in the paper, by setting."""


PUBLISHED = "Tam et al. 2024, arXiv 2409.18314"


def claims(results: Results) -> Iterator[Marked]:
    """The paper's findings, with their marks; settings are tasks."""
    names = [task["name"] for task in results.tasks]
    texts = [task["name"] for task in results.tasks if task["setting"] == "text"]
    correlations = {x: tuple(results.correlation(x).values()) for x in names}
    found = {x: Difference(values, 1) if values else None for x, values in correlations.items()}

    def against(method: str, than: str, column: str, tasks: Sequence[str]) -> Told:
        return [(x, results.difference(method, than, column, [x])) for x in tasks]

    told: list[tuple[Claim, Told]] = [
        (Claim(PUBLISHED, "held-in and generalisation accuracy go together, images", "rank correlation", "zero", unit=""),
         [(x, found[x]) for x in names if x not in texts]),
        (Claim(PUBLISHED, "they go against each other, text", "rank correlation", "zero", -1, unit=""),
         [(x, found[x]) for x in texts]),
        (Claim(PUBLISHED, "more models cost held-in accuracy", "held-in of all networks", "of two", -1),
         [(x, results.more_models(x, "held_in")) for x in names]),
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
        values = tuple(results.correlation(task["name"]).values())
        if values:
            sign, found = EXPECTED[task["setting"]], Difference(values, 1)
            said = {1: "positive", -1: "negative", 0: "not told from zero"}[found.verdict]
            yield (
                f"Expected, {task['name']}: held-in and generalisation accuracy are {'' if sign > 0 else 'anti-'}correlated "
                f"over merges. Found: rank correlation {found.told(scale=1, unit='')}, "
                f"{'one seed' if len(values) < 2 else said}, over {len(results.merges(task['name']))} merges without learning."
            )


def _best_held_in(results: Results) -> Iterator[str]:
    for task in results.tasks:
        merges = [name for name in results.merges(task["name"]) if name in PAPER]
        ranked = sorted(merges, key=lambda name: -results.mean(task["name"], name, "held_in"))
        if not ranked:
            continue
        places = {name: ranked.index(name) + 1 for name in ("RegMean", "MaTS", "Fisher") if name in ranked}
        general = sorted(merges, key=lambda name: -results.mean(task["name"], name, "generalisation"))
        yield (
            f"Expected, {task['name']}: of the paper's methods RegMean and MaTS lead on held-in tasks, not on generalisation. "
            f"Found: {ranked[0]} leads held-in ({_percent(results, task['name'], ranked[0], 'held_in')}), {general[0]} "
            f"generalises best ({_percent(results, task['name'], general[0], 'generalisation')}); places held-in and in "
            f"generalisation: {', '.join(f'{n} {k} and {general.index(n) + 1}' for n, k in places.items()) or 'none'}, of "
            f"{len(ranked)}."
        )


def _below_base(results: Results) -> Iterator[str]:
    for task in results.tasks:
        merges, base = results.merges(task["name"]), results.mean(task["name"], BASE, "generalisation")
        if not merges:
            continue
        below = sum(results.mean(task["name"], name, "generalisation") < base for name in merges)
        words = "most merges generalise worse than the base" if task["setting"] == "text" else "merges generalise better"
        yield (
            f"Expected, {task['name']}: {words}{'' if task['setting'] == 'text' else ' than the base'}. Found: {below} of "
            f"{len(merges)} are below its {100 * base:.1f} %."
        )


def _above_multitask(results: Results) -> Iterator[str]:
    for task in results.tasks:
        name, merges = task["name"], results.merges(task["name"])
        if not merges or not results.of(name, MULTITASK):
            continue
        better = [[m for m in merges if results.mean(name, m, c) > results.mean(name, MULTITASK, c)] for c in SCORES]
        both = [m for m in better[0] if m in better[1]]
        expected = "several merges beat multitask training on both" if task["setting"] == "generation" else "none was stated"
        yield (
            f"Merges beside multitask training, {name}; expected: {expected}. Found above it held-in: {_named(better[0])}; in "
            f"generalisation: {_named(better[1])}; in both: {_named(both)}."
        )


def _more_models(results: Results) -> Iterator[str]:
    for task in results.tasks:
        held, general = (results.more_models(task["name"], column) for column in SCORES)
        if held is not None and general is not None:
            yield (
                f"Expected, {task['name']}: merging more networks costs held-in accuracy and buys generalisation. Found, all "
                f"against two: held-in {held.told()} ({held.word}), generalisation {general.told()} ({general.word})."
            )


def _costs(results: Results) -> Iterator[str]:
    for task in results.tasks:
        name = task["name"]
        counted = {m: results.cost(name, m) for m in results.merges(name) if not results.mean(name, m, "uncounted")}
        counted = {m: cost for m, cost in counted.items() if cost > 0}
        if len(counted) < 2:
            continue
        low, high = min(counted, key=counted.__getitem__), max(counted, key=counted.__getitem__)
        yield (
            f"Expected: costs span almost two orders of magnitude. Found, {name}: from {counted[low]:.1e} operations ({low}) "
            f"to {counted[high]:.1e} ({high}), {math.log10(counted[high] / counted[low]):.1f} orders, of {len(counted)} "
            "merges that are counted in full."
        )


def _sensitivity(results: Results) -> Iterator[str]:
    for task in results.tasks:
        ranges = {
            (method, field): results.range_of(task["name"], method, field, "held_in")
            for method, field in results.fields(task["name"])
            if method in PAPER
        }
        if ranges:
            told = ", ".join(f"{m} {f} {100 * x:.1f}" for (m, f), x in sorted(ranges.items(), key=lambda item: -item[1]))
            yield (
                f"Expected, {task['name']}: task arithmetic and TIES hang on their scale, DARE little on what it drops. Found, "
                f"points of held-in accuracy between the best and the worst value: {told}."
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


def _percent(results: Results, task: str, method: str, column: str) -> str:
    return f"{100 * results.mean(task, method, column):.1f} %"


def _named(names: list[str]) -> str:
    return ", ".join(names) or "none"
