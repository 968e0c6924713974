"""What was expected of CCA Merge and what came out, in words that follow the rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from experiments.cca_merge.results import Results
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
from experiments.differences import Difference, paired, ranged, settings_told
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
    Claim("Expected, from the paper: CCA is better than a permutation by activations.", CCA, PERMUTED, 1),
    Claim("The same, where BatchNorm's scale is in the convolutions of both.", FOLDED_CCA, FOLDED_PERMUTED, 1),
    Claim("The same, beside a permutation by weights.", CCA, WEIGHTS, 1),
    Claim("The same, beside ZipIt.", CCA, ZIPIT, 1),
    Claim("The same, beside optimal transport.", CCA, TRANSPORT, 1),
    Claim("Question: does CCA bring more than a rotation, to which it tends for large gamma, up to a scale?", CCA, PROCRUSTES),
    Claim("Question: the same, with BatchNorm folded.", FOLDED_CCA, FOLDED_PROCRUSTES),
    Claim("Question: what is folding BatchNorm worth to CCA?", FOLDED_CCA, CCA),
    Claim("Question: and to a permutation, which needs none?", FOLDED_PERMUTED, PERMUTED),
    Claim("Question: what is left of CCA where every channel gets the moments of the reference, in both averages?",
          CCA_REPAIR, PERMUTED_LIKE),
    Claim("Question: and beside the permuted average with the mean moments of its parents?", CCA_REPAIR, PERMUTED_REPAIR),
    Claim("Expected, from reviews of the paper: a merge stays below its networks.", CCA, BEST, -1),
    Claim("Expected: it stays below the ensemble.", CCA, ENSEMBLE, -1),
    Claim("Control: a few labels for the CCA average, beside one of the networks fine-tuned alike.", TUNED_CCA, TUNED_ONE),
    Claim("Control: is the CCA average still the better start once both are fine-tuned?", TUNED_CCA, TUNED_PERMUTED),
)  # fmt: skip


def findings(results: Results) -> Iterator[str]:
    """A line for each claim that the rows have something to say of."""
    for claim in CLAIMS:
        if line := _judged(results, claim):
            yield line
    yield from _on_test(results)
    yield from _borrowed(results)
    yield from _more_models(results)
    yield from _references(results)
    yield from _depth(results)


def claims(results: Results) -> Iterator[Marked]:
    """What is expected, with its mark; settings are blocks."""
    for claim in (x for x in CLAIMS if x.sign):
        said = Said("CCA Merge", claim.expected, claim.better, claim.than, claim.sign)
        if (judged := marked(said, _by_block(results, claim).items())) is not None:
            yield judged


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


def _by_block(results: Results, claim: Claim) -> dict[str, Difference]:
    """Over the numbers of networks of each block, by its title."""
    found = {results.title(b): results.difference(claim.better, claim.than, b, b.counts) for b in results.blocks}
    return {title: x for title, x in found.items() if x is not None}


def _judged(results: Results, claim: Claim) -> str:
    known = _by_block(results, claim)
    if not known:
        return ""
    told = f"{claim.better} minus {claim.than} {ranged(known)}"
    if all(len(x.values) < 2 for x in known.values()):
        return f"{claim.expected} One seed cannot tell; {told}."
    return f"{claim.expected} Found: {settings_told(list(known.values()), claim.sign)} settings; {told}."


def _on_test(results: Results) -> Iterator[str]:
    """What the published choice of gamma is worth; by definition it is never worse in accuracy."""
    known = _by_block(results, Claim("", ON_TEST, CCA))
    if known:
        yield (
            "Question: the published code chose gamma on test data, here for every row anew: by definition never worse in "
            f"accuracy than a choice on validation data. What is it worth? {ranged(known)}."
        )


def _borrowed(results: Results) -> Iterator[str]:
    """As published: gamma chosen once, on test data of the first seed, for all others."""
    first, *others = results.seeds()
    known = {}
    for block in results.blocks:
        pairs = []
        for n in block.counts:
            searched = results.searched(block, n)
            if first in searched:
                gamma = max(searched[first], key=searched[first].__getitem__)
                mine = {seed: found[gamma] for seed, found in searched.items() if seed in others and gamma in found}
                pairs.append((mine, results.accuracies(block, CCA, n)))
        if (found := paired(pairs)) is not None:
            known[results.title(block)] = found
    if known:
        yield (
            f"Gamma chosen once, on test data of seed {first}, for the other seeds, minus a choice on validation data for "
            f"each: {settings_told(list(known.values()), 0)} settings; {ranged(known)}."
        )


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
        yield f"From {few} to {many} networks, {results.title(block)}, %: {'; '.join(courses)}. {_best(results, block, many)}"


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
                told = "; ".join(f"{choice} {x.told()} ({x.word})" for choice, x in found.items() if x is not None)
                if told:
                    yield f"Choice of the reference, {results.title(block)}, {n} networks, {method}, against the first: {told}."


def _depth(results: Results) -> Iterator[str]:
    for block in results.blocks:
        layers = list(results.layers(block))
        if len(layers) < 2:
            continue
        courses = [f"{words} {_course(layers, name)}" for name, words in COURSES.items()]
        ratio, alone = (np.mean([row[name] for rows in layers for row in rows]) for name in ("explained", "explained_by_match"))
        yield (
            f"Correlations by depth, {results.title(block)}: {', '.join(courses)}; of a layer's variance linear maps explain "
            f"{100 * ratio:.0f} %, the matched unit alone {100 * alone:.0f} %."
        )


COURSES = {"canonical": "canonical", "matched": "of matched living units"}


def _course(layers: list[list], name: str) -> str:
    """Layer by layer, a mean over seeds."""
    return " ".join(f"{np.mean([np.mean(row[name]) if row[name] else 0.0 for row in rows]):.2f}" for rows in layers)
