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
    GOOD,
    ON_TEST,
    PARENTS,
    PERMUTED,
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
from experiments.differences import Difference, paired, settings_told
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
    Claim("The same, beside a permutation by weights.", CCA, WEIGHTS, 1),
    Claim("The same, beside ZipIt.", CCA, ZIPIT, 1),
    Claim("The same, beside optimal transport.", CCA, TRANSPORT, 1),
    Claim("Question: does CCA bring more than a rotation, to which it tends for large gamma, up to a scale?", CCA, PROCRUSTES),
    Claim("Question: what is left of it where every channel gets the moments of its parents (for CCA of the reference)?",
          CCA_REPAIR, PERMUTED_REPAIR),
    Claim("Expected, from reviews of the paper: a merge stays below its networks.", CCA, BEST, -1),
    Claim("Expected: it stays below the ensemble.", CCA, ENSEMBLE, -1),
    Claim(
        "Question: the published code chose gamma on test data, here for every row anew: by definition never worse in accuracy "
        "than a choice on validation data. What is it worth?", ON_TEST, CCA,
    ),
    Claim("Control: a few labels for the CCA average, beside one of the networks fine-tuned alike.", TUNED_CCA, TUNED_ONE),
    Claim("Control: is the CCA average still the better start once both are fine-tuned?", TUNED_CCA, TUNED_PERMUTED),
)  # fmt: skip


def findings(results: Results) -> Iterator[str]:
    """A line for each claim that the rows have something to say of."""
    for claim in CLAIMS:
        if line := _judged(results, claim):
            yield line
    yield from _borrowed(results)
    yield from _more_models(results)
    yield from _references(results)
    yield from _depth(results)


def claims(results: Results) -> Iterator[Marked]:
    """What is expected, with its mark; settings are blocks."""
    for claim in (x for x in CLAIMS if x.sign):
        found = ((results.title(block), _in_block(results, claim, block)) for block in results.blocks)
        if (judged := marked(Said("CCA Merge", claim.expected, claim.better, claim.than, claim.sign), found)) is not None:
            yield judged


def differences(results: Results) -> list[str]:
    """Lines of a table: for each claim and block the difference of accuracies."""
    rows = []
    for claim in CLAIMS:
        found = [_in_block(results, claim, block) for block in results.blocks]
        cells = ["" if x is None else f"{x.told(unit='')}, {x.word}" for x in found]
        rows.append((f"{claim.better} minus {claim.than}", *cells))
    header = ("test accuracy, points", *(results.title(block) for block in results.blocks))
    return markdown_table(header, [row for row in rows if any(row[1:])])


def _judged(results: Results, claim: Claim) -> str:
    parts = [_in_block(results, claim, block) for block in results.blocks]
    known = [found for found in parts if found is not None]
    if not known:
        return ""
    over_all = results.difference(claim.better, claim.than)
    assert over_all is not None
    told = f"{claim.better} minus {claim.than}: {over_all.told()} over {over_all.points} merge{'s' * (over_all.points > 1)}"
    if len(over_all.values) < 2:
        return f"{claim.expected} One seed cannot tell; {told}."
    return f"{claim.expected} Found: {settings_told(known, claim.sign)} settings. {told}."


def _in_block(results: Results, claim: Claim, block: Block) -> Difference | None:
    return results.difference(claim.better, claim.than, where=lambda other, models: other == block)


def _borrowed(results: Results) -> Iterator[str]:
    """As published: gamma chosen once, on test data of the first seed, for all others."""
    first, *others = results.seeds
    pairs = []
    for block in results.blocks:
        for n in block.counts:
            searched = results.searched(block, n)
            if first not in searched:
                continue
            gamma = max(searched[first], key=lambda g: searched[first][g])
            mine = {seed: found[gamma] for seed, found in searched.items() if seed in others and gamma in found}
            pairs.append((mine, results.accuracies(block, CCA, n)))
    if (found := paired(pairs)) is not None:
        yield (
            f"Gamma chosen once, on test data of seed {first}, for the other seeds, minus a choice on validation data for "
            f"each: {found.told()} over {found.points} merge{'s' * (found.points > 1)} ({found.word})."
        )


def _more_models(results: Results) -> Iterator[str]:
    """How accuracy changes from the fewest networks to the most."""
    for block in results.blocks:
        few, many = min(block.counts), max(block.counts)
        if few == many:
            continue
        changes = {}
        for method in (ENSEMBLE, *ALIGNMENTS):
            found = paired([(results.accuracies(block, method, many), results.accuracies(block, method, few))])
            if found is not None:
                changes[method] = f"{method} {found.told()}"
        above = [m for m in ALIGNMENTS if results.mean(block, m, many) > results.mean(block, PARENTS, many)]
        best = max((m for m in ALIGNMENTS if m != PLAIN), key=lambda m: np.nan_to_num(results.mean(block, m, many)))
        yield (
            f"From {few} to {many} networks, {results.title(block)}: {'; '.join(changes.values())}. Above its networks' mean "
            f"with {many}: {', '.join(above) or 'none'}; the best alignment is {best}."
        )


def _references(results: Results) -> Iterator[str]:
    for method in (PERMUTED, CCA):
        found = {choice: results.by_reference(method, choice) for choice in (GOOD, BAD, EVERY)}
        told = "; ".join(f"{choice} {x.told()} ({x.word})" for choice, x in found.items() if x is not None)
        if told:
            yield f"Choice of the reference, {method}, against the first network: {told}."


def _depth(results: Results) -> Iterator[str]:
    for block in results.blocks:
        layers = list(results.layers(block))
        if len(layers) < 2:
            continue
        canonical, matched = ([_mean(rows, name) for rows in layers] for name in ("canonical", "matched"))
        ratio = np.mean([row["explained"] for rows in layers for row in rows])
        alone = np.mean([row["explained_by_match"] for rows in layers for row in rows])
        yield (
            f"Correlations by depth, {results.title(block)}: canonical {_course(canonical)}, of matched units "
            f"{_course(matched)}; of a layer's variance linear maps explain {100 * ratio:.0f} %, the matched unit alone "
            f"{100 * alone:.0f} %."
        )


def _course(values: list[float]) -> str:
    word = "fall" if values[-1] < values[0] else "rise"
    return f"{word} from {values[0]:.2f} to {values[-1]:.2f}"


def _mean(rows: list, name: str) -> float:
    return float(np.mean([np.mean(row[name]) for row in rows]))
