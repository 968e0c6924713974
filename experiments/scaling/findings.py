"""What was expected of many networks and what came out, in words that follow the rows."""

from collections.abc import Iterator
from typing import Any

from experiments.claims import Claim, Marked, marked
from experiments.differences import Difference
from experiments.scaling.laws import growing, tending
from experiments.scaling.results import Results
from experiments.scaling.settings import (
    ARITHMETIC,
    AVERAGE,
    CONTROL,
    ENSEMBLE,
    FIRST,
    JOINT,
    LONG,
    MEAN,
    NONE,
    PAIRS,
    PARENTS,
    REFERENCE,
    SHORT,
    SUCCESSIVE,
    TENSORS,
    TIES,
    UNIVERSE,
    Block,
)

CLAIMS: tuple[tuple[Claim, dict[str, str]], ...] = (
    (
        Claim("Crisostomi et al. 2024 (C2M3), arXiv 2405.17897", "a universe is better than matching each network to one of "
              "them, for more than two", f"{UNIVERSE}: {AVERAGE}", f"{REFERENCE}: {AVERAGE}"),
        {"of": UNIVERSE, "over": REFERENCE},
    ),
    (
        Claim("Ainsworth et al. 2023 (MergeMany), arXiv 2209.04836", "networks matched to the others' mean have a better "
              "average than as they are", f"{MEAN}: {AVERAGE}", f"{NONE}: {AVERAGE}"),
        {"of": MEAN, "over": NONE},
    ),
    (
        Claim("Yadav et al. 2023 (TIES), arXiv 2306.01708", "of more than two models TIES keeps more than task arithmetic",
              TIES, ARITHMETIC),
        {},
    ),
    (
        Claim("Orozco Camacho et al. 2024 (NP Merge)", "coefficients learned in successive pairs are better than the average",
              PAIRS, AVERAGE),
        {},
    ),
    (
        Claim("the same, beside the control", "they are better than the average fine-tuned with as many steps", PAIRS, LONG),
        {},
    ),
)  # fmt: skip
"""What papers say, and in which alignments the two rows are."""

HELP: tuple[tuple[str, str, str | None], ...] = (
    (JOINT, AVERAGE, None),
    (JOINT, CONTROL, None),
    (TENSORS, CONTROL, None),
    (SHORT, CONTROL, None),
    (SHORT, CONTROL, SUCCESSIVE),
    (PAIRS, LONG, None),
    (CONTROL, FIRST, None),
)
"""Learned rows beside what they have to be better than, and in which alignment if not in that of the block."""


def claims(results: Results) -> Iterator[Marked]:
    """Each with its mark, where it was measured; settings are blocks, over all numbers above two."""
    for claim, places in CLAIMS:
        better, than = (name.split(": ")[-1] for name in (claim.better, claim.than))
        found = ((block.name, results.difference(block, better, than, _more(block), **places)) for block in results.blocks)
        if (judged := marked(claim, found)) is not None:
            yield judged


def findings(results: Results) -> Iterator[str]:
    """A line for each question."""
    for block in results.blocks:
        yield from _helps(results, block)
    for block in results.blocks:
        yield from _alignments(results, block)
    yield from _memory(results)


def _more(block: Block) -> list[int]:
    """Numbers of networks at which alignments and orders of merging differ."""
    return [n for n in block.counts if n > 2]


def _helps(results: Results, block: Block) -> Iterator[str]:
    """Where learned coefficients stop helping."""
    for learned, than, where in HELP:
        found = {n: results.difference(block, learned, than, [n], of=where, over=where) for n in block.counts}
        known: dict[int, Difference] = {n: x for n, x in found.items() if x is not None}
        if not known:
            continue
        told = "; ".join(f"{n}: {x.told(unit='')} ({x.word})" for n, x in known.items())
        aligned = f", {where} alignment" if where else ""
        yield f"{block.name}: {learned} minus {than}{aligned}, points: {told}. {_until(known)}"


def _until(found: dict[int, Difference]) -> str:
    """From which number on the first is no longer above the second."""
    if all(len(x.values) < 2 for x in found.values()):
        return "One seed cannot tell where it stops helping."
    helps = [n for n, x in found.items() if x.verdict > 0]
    if not helps:
        return "Nowhere told to help."
    without_gap = [n for n, m in zip(sorted(found), sorted(helps), strict=False) if n == m]
    if len(without_gap) == len(helps):
        return f"Told to help up to {max(helps)}." if max(helps) < max(found) else f"Told to help up to {max(helps)}, the most."
    return f"Told to help at {', '.join(map(str, sorted(helps)))}."


def _alignments(results: Results, block: Block) -> Iterator[str]:
    few, many = min(block.counts), max(block.counts)
    if few == many:
        return
    parts = []
    for alignment in block.alignments:
        at = [100 * results.mean(block, AVERAGE, n, alignment) for n in (few, many)]
        seconds = results.mean(block, AVERAGE, many, alignment, "aligning")
        parts.append(f"{alignment} {at[0]:.1f} to {at[1]:.1f} % ({seconds:.2f} CPU s at {many})")
    levels = [f"{m} {100 * results.mean(block, m, few):.1f} to {100 * results.mean(block, m, many):.1f} %" for m in LEVELS_TOLD]
    yield f"{block.name}: the average from {few} to {many} networks, by alignment: {', '.join(parts)}; {', '.join(levels)}."


LEVELS_TOLD = (PARENTS, ENSEMBLE)


def _memory(results: Results) -> Iterator[str]:
    ratios = [row["predicted"] / row["planned"] for row in results.rows if row["predicted"] != ""]
    if ratios:
        yield (
            f"Memory of a step of learning, predicted before it runs, is {min(ratios):.2f} to {max(ratios):.2f} of what XLA "
            f"plans, over {len(ratios)} rows."
        )


def laws(results: Results) -> list[dict[str, Any]]:
    """Of the loss of averages, ensembles and learned merges, and of seconds; a law for each block and way."""
    found = []
    for block in results.blocks:
        ways = [(AVERAGE, alignment) for alignment in block.alignments]
        losses = [*ways, (ENSEMBLE, None), (JOINT, None), (PAIRS, None), (CONTROL, None)]
        for method, alignment in losses:
            law = results.law(tending, results.curve(block, method, alignment, "loss"))
            found.append({"block": block.name, "what": "test loss", "of": _named(method, alignment), "law": law})
        for _, alignment in ways:
            if alignment != NONE:
                law = results.law(growing, results.curve(block, AVERAGE, alignment, "aligning"))
                found.append({"block": block.name, "what": "CPU seconds to align", "of": alignment, "law": law})
        for method in (AVERAGE, JOINT, PAIRS, SHORT, CONTROL):
            law = results.law(growing, results.curve(block, method, None, "merging"))
            found.append({"block": block.name, "what": "CPU seconds to merge", "of": method, "law": law})
        for column in ("planned", "predicted"):
            law = results.law(growing, results.curve(block, JOINT, None, column))
            found.append({"block": block.name, "what": f"bytes of a step, {column}", "of": JOINT, "law": law})
    return [row for row in found if row["law"] is not None]


def _named(method: str, alignment: str | None) -> str:
    return method if alignment is None else f"{alignment}: {method}"
