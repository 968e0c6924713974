"""What was expected of CCA Merge and what came out, in words that follow the rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.cca_merge.results import Results, Row
from experiments.cca_merge.settings import (
    ALIGNMENTS,
    BAD,
    BEST,
    CCA,
    CCA_REPAIR,
    ENSEMBLE,
    EVERY,
    FOLDED_CCA,
    FOLDED_PERMUTED,
    FOLDED_PROCRUSTES,
    GOOD,
    ON_TEST,
    PARENTS,
    PERMUTED,
    PERMUTED_LIKE,
    PERMUTED_REPAIR,
    PLAIN,
    PROCRUSTES,
    TRANSPORT,
    TUNED_CCA,
    TUNED_ONE,
    TUNED_PERMUTED,
    WEIGHTS,
    ZIPIT,
    Block,
)
from experiments.claims import Claim as Said
from experiments.claims import Marked, marked
from experiments.differences import JUDGED, Difference, judged, ranged, settings_told
from npmerge.reports.tables import markdown_table

PAPER = "Horoi et al. 2024 (CCA Merge), arXiv 2407.05385"


@dataclass(frozen=True)
class Claim:
    """That one method has a higher test accuracy than another, or a question.

    Attributes:
        expected: in words.
        better: a method.
        than: another.
        sign: 1 if the first is expected to be higher, -1 if lower, 0 for an open question.
        source: who says so; nobody but this page if not given.
    """

    expected: str
    better: str
    than: str
    sign: int = 0
    source: str = ""


ALIGNED = (
    Claim("CCA is better than a permutation by activations", CCA, PERMUTED, 1, PAPER),
    Claim("CCA is better than a permutation by weights", CCA, WEIGHTS, 1, PAPER),
    Claim("CCA is better than ZipIt", CCA, ZIPIT, 1, PAPER),
    Claim("CCA is better than optimal transport", CCA, TRANSPORT, 1, PAPER),
    Claim("does CCA bring more than a rotation?", CCA, PROCRUSTES),
)
NORMALISED = (
    Claim("what is folding BatchNorm worth to CCA?", FOLDED_CCA, CCA),
    Claim("what is it worth to a permutation, which needs none?", FOLDED_PERMUTED, PERMUTED),
    Claim("with BatchNorm folded, is CCA better than a permutation?", FOLDED_CCA, FOLDED_PERMUTED),
    Claim("with BatchNorm folded, than a rotation?", FOLDED_CCA, FOLDED_PROCRUSTES),
    Claim("with BatchNorm folded, than ZipIt, which permutes and so needs none?", FOLDED_CCA, ZIPIT),
    Claim("what is left of CCA where every channel gets the moments of the reference, in both averages?",
          CCA_REPAIR, PERMUTED_LIKE),
    Claim("what is left beside the permuted average with the mean moments of its parents?", CCA_REPAIR, PERMUTED_REPAIR),
)  # fmt: skip
LEVELLED = (
    Claim("the average is below its networks' mean", CCA, PARENTS, -1),
    Claim("the average is below the best of its networks", CCA, BEST, -1),
    Claim("the average is below the ensemble", CCA, ENSEMBLE, -1),
    Claim("control: a few labels for the CCA average, beside the first network fine-tuned alike", TUNED_CCA, TUNED_ONE),
    Claim("control: is the CCA average still the better start once both are fine-tuned?", TUNED_CCA, TUNED_PERMUTED),
)
CLAIMS = (*ALIGNED, *NORMALISED, *LEVELLED)


def findings(results: Results) -> Iterator[tuple[str, list[str]]]:
    """Under headings, tables of the claims that the rows have something to say of, and sentences."""
    about = {
        "CCA beside other alignments": ALIGNED,
        "BatchNorm, and the moments of channels": NORMALISED,
        "Beside the networks, and with labels": LEVELLED,
    }
    for heading, asked in about.items():
        if rows := list(_judged(results, asked)):
            yield heading, markdown_table(JUDGED, rows)
    said = {
        "How gamma is chosen": _gamma(results),
        "More networks": _more_models(results),
        "The reference": _references(results),
        "Depth": _depth(results),
    }
    for heading, sentences in said.items():
        if lines := [f"- {line}" for line in sentences]:
            yield heading, lines


def claims(results: Results) -> Iterator[Marked]:
    """What the paper expects, with its mark; settings are groups of networks."""
    for claim in (x for x in CLAIMS if x.source):
        said = Said(claim.source, claim.expected, claim.better, claim.than, claim.sign)
        if (found := marked(said, _by_group(results, claim).items())) is not None:
            yield found


def differences(results: Results) -> list[str]:
    """Lines of a table: for each claim the difference of accuracies in each block, number by number."""
    rows = []
    for claim in CLAIMS:
        cells = []
        for block in results.blocks:
            found = {n: results.difference(claim.better, claim.than, block, [n]) for n in block.counts}
            parts = [(n, f"{x.told(unit='')}, {x.word}") for n, x in found.items() if x is not None]
            cells.append("; ".join(f"{n}: {told}" if len(block.counts) > 1 else told for n, told in parts))
        rows.append((f"{claim.better} minus {claim.than}", *cells))
    header = ("test accuracy, points", *(results.title(block) for block in results.blocks))
    return markdown_table(header, [row for row in rows if any(row[1:])])


def _by_group(results: Results, claim: Claim) -> dict[str, Difference]:
    """By the name of each group of networks: numbers of networks are not pooled, they may answer differently."""
    found = {results.group(b, n): results.difference(claim.better, claim.than, b, [n]) for b, n in results.groups()}
    return {title: x for title, x in found.items() if x is not None}


def _judged(results: Results, about: Sequence[Claim]) -> Iterator[tuple[str, ...]]:
    for claim in about:
        if known := _by_group(results, claim):
            who = "the paper: " if claim.source else "expected: " if claim.sign else ""
            yield judged(f"{who}{claim.expected}", f"{claim.better} minus {claim.than}", known)


def _told(known: Mapping[str, Difference], sign: int) -> str:
    """A difference in all groups: its range, verdicts, and in how many seeds it is above zero, which needs no interval."""
    found = list(known.values())
    values = [value for x in found for value in x.values]
    if all(len(x.values) < 2 for x in found):
        return f"{ranged(known)}; one seed cannot tell."
    above = sum(value > 0 for value in values)
    return f"{ranged(known)}; {settings_told(found, sign)} groups; above zero in {above} of {len(values)} groups and seeds."


# ------------------------------------------------------------------------------------------------------------------- gamma


def _gamma(results: Results) -> Iterator[str]:
    """What looking at test data is worth, by the rule for every row and by the rule of once for all."""
    anew = _by_group(results, Claim("", ON_TEST, CCA))
    if anew:
        yield (
            f"Chosen on test data for every row anew, minus on validation data: {ranged(anew)}; by definition never worse in "
            "accuracy."
        )
    worth: dict[str, dict[str, Difference]] = {"test": {}, "once": {}, "scale": {}}
    for block, n in results.groups():
        searched = results.searched(block, n)
        if len(searched) > 1:
            found = _once(searched) | {"scale": _beyond_largest(searched)}
            for name, values in found.items():
                worth[name][results.group(block, n)] = Difference(values, 1)
    if worth["test"]:
        yield (
            "Chosen once, as published, on test data, minus once on validation data (the networks of one seed choose, those "
            f"of the others are judged, each in turn): {_told(worth['test'], 0)}"
        )
        yield f"Chosen once on validation data, minus for each seed: {_told(worth['once'], 0)}"
        yield (
            "Chosen on validation data, minus the largest gamma, a rotation times one factor for each layer: "
            f"{_told(worth['scale'], 0)}"
        )


Searched = Mapping[int, Mapping[float, Row]]


def _once(searched: Searched) -> dict[str, tuple[float, ...]]:
    """By the seed whose networks choose: means over the others of what its choices are worth to them."""
    on_test, on_validation = ({k: _best_gamma(by, on) for k, by in searched.items()} for on in ("test", "validation"))
    found: dict[str, list[float]] = {"test": [], "once": []}
    for choosing in searched:
        others = [seed for seed in searched if seed != choosing]
        tested, validated = (
            np.mean([searched[seed][gammas[choosing]]["test"] for seed in others]) for gammas in (on_test, on_validation)
        )
        anew = np.mean([searched[seed][on_validation[seed]]["test"] for seed in others])
        found["test"].append(float(tested - validated))
        found["once"].append(float(validated - anew))
    return {name: tuple(values) for name, values in found.items()}


def _beyond_largest(searched: Searched) -> tuple[float, ...]:
    return tuple(by[_best_gamma(by)]["test"] - by[max(by)]["test"] for by in searched.values())


def _best_gamma(by: Mapping[float, Row], on: str = "validation") -> float:
    """As `rows` chooses; the loss decides ties."""
    return max(by, key=lambda gamma: (by[gamma][on], -by[gamma][f"{on}_loss"]))


# ------------------------------------------------------------------------------------------------- networks, references, depth


def _more_models(results: Results) -> Iterator[str]:
    """How accuracy goes with the number of networks, and which alignment is the best with the most."""
    for block in results.blocks:
        if len(block.counts) < 2:
            continue
        few, many = min(block.counts), max(block.counts)
        courses = []
        for method in (PARENTS, ENSEMBLE, *ALIGNMENTS):
            known = {n: results.mean(block, method, n) for n in block.counts if results.accuracies(block, method, n)}
            if few in known and many in known:
                low = min(known, key=known.__getitem__)
                lowest = f", lowest {100 * known[low]:.1f} at {low}" if low not in (few, many) else ""
                courses.append(f"{method} {100 * known[few]:.1f} to {100 * known[many]:.1f}{lowest}")
        words = "" if block.split == "same" else " (others, of fewer images each, not the first of the more)"
        yield (
            f"From {few} to {many} networks{words}, {results.title(block)}, %: {'; '.join(courses)}. "
            f"{_best(results, block, many)}"
        )


def _best(results: Results, block: Block, models: int) -> str:
    ranked = sorted(
        (m for m in ALIGNMENTS if m != PLAIN and results.accuracies(block, m, models)),
        key=lambda m: -results.mean(block, m, models),
    )
    best, *others = ranked
    apart = {m: results.difference(best, m, block, [models]) for m in others}
    equal = [m for m, x in apart.items() if x is None or not x.verdict]
    if not equal:
        return f"With {models} {best} is the best alignment."
    return f"With {models} {best} is the highest alignment, not told apart from {', '.join(equal)}."


def _references(results: Results) -> Iterator[str]:
    for block in results.blocks:
        for n in block.references:
            for method in (PERMUTED, CCA):
                found = {choice: results.by_reference(method, choice, block, n) for choice in (GOOD, BAD, EVERY)}
                told = [f"{choice} {x.told()} ({x.word}{_itself(x)})" for choice, x in found.items() if x is not None]
                apart = results.by_reference(method, GOOD, block, n, BAD)
                if told and apart is not None:
                    yield (
                        f"{results.group(block, n)}, {method}, against the first network: {'; '.join(told)}. The best against "
                        f"the worst: {apart.told()} ({apart.word})."
                    )


def _itself(found: Difference) -> str:
    """In how many seeds nothing differs: there the first network is the one that was chosen."""
    same = sum(value == 0 for value in found.values)
    return f", the first itself in {same} of {len(found.values)} seeds" if same else ""


def _depth(results: Results) -> Iterator[str]:
    blocks = [layers for block in results.blocks if len(layers := list(results.layers(block))) > 1]
    if not blocks:
        return
    courses = []
    for name, words in COURSES.items():
        ends = [[_level(layers[k], name) for layers in blocks] for k in (0, -1)]
        first, last = (f"{min(x):.2f} to {max(x):.2f}" for x in ends)
        courses.append(f"{words} {first} in the first layer, {last} in the last")
    shares = {name: [100 * np.mean([_level(x, name) for x in layers]) for layers in blocks] for name in EXPLAINED}
    told = (f"{words} {min(shares[name]):.0f} to {max(shares[name]):.0f} %" for name, words in EXPLAINED.items())
    yield (
        f"Mean correlations, from the lowest to the highest group: {'; '.join(courses)}. Of a layer's variance, a mean over "
        f"layers, {' and '.join(told)} (with as many regressors as units, at the images they are fitted to). Layer by layer "
        "in the tables."
    )


COURSES = {"canonical": "canonical", "matched": "of living units that a permutation pairs"}
EXPLAINED = {"explained": "linear maps explain", "explained_by_match": "the matched unit alone"}


def _level(rows: Sequence[Row], name: str) -> float:
    """Of a layer, a mean over seeds."""
    return float(np.mean([np.mean(row[name]) if np.size(row[name]) else 0.0 for row in rows]))
