"""What was expected of many networks and what came out, in words that follow the rows."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from experiments.claims import Claim, Marked, marked
from experiments.differences import Difference, settings_told
from experiments.scaling.results import Results
from experiments.scaling.settings import (
    ALIGNMENTS,
    ARITHMETIC,
    AVERAGE,
    BEST,
    CONTROL,
    ENSEMBLE,
    FISHER,
    JOINT,
    LONG,
    MEAN,
    NONE,
    ONE,
    PAIRS,
    PARENTS,
    REFERENCE,
    REGMEAN,
    REPAIR,
    SHORT,
    SUCCESSIVE,
    TENSORS,
    TIES,
    UNIVERSE,
    Block,
)
from npmerge.reports.tables import markdown_table

CLAIMS: tuple[tuple[Claim, dict[str, str]], ...] = (
    (
        Claim("Crisostomi et al. 2024 (C2M3), arXiv 2405.17897", "a universe is better than matching each network to one of "
              "them, for more than two", f"{UNIVERSE}: {AVERAGE}", f"{REFERENCE}: {AVERAGE}"),
        {"of": UNIVERSE, "over": REFERENCE},
    ),
    (
        Claim("the same", "a universe is better than matching each network to the others' mean (MergeMany)",
              f"{UNIVERSE}: {AVERAGE}", f"{MEAN}: {AVERAGE}"),
        {"of": UNIVERSE, "over": MEAN},
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
        Claim("Orozco Camacho et al. 2024 (NP Merge), arXiv 2412.15467", "coefficients learned in successive pairs are better "
              "than the average", PAIRS, AVERAGE),
        {},
    ),
    (
        Claim("the same, beside the control", "they are better than the average fine-tuned with as many steps", PAIRS, LONG),
        {},
    ),
)  # fmt: skip
"""What papers say, and in which alignments the two rows are."""


class Pair(NamedTuple):
    """A row beside another, and the alignment of both if not that of the block."""

    better: str
    than: str
    alignment: str | None = None

    @property
    def title(self) -> str:
        """Both names."""
        return f"{self.better} minus {self.than}{f', {self.alignment} alignment' * bool(self.alignment)}"


BESIDE_CONTROLS = (
    Pair(JOINT, CONTROL),
    Pair(TENSORS, CONTROL),
    Pair(SHORT, CONTROL),
    Pair(PAIRS, LONG),
    Pair(SHORT, CONTROL, SUCCESSIVE),
)
"""What is learned beside the average that is fine-tuned with as many steps."""

BESIDE_ONE = tuple(Pair(method, ONE) for method in (JOINT, TENSORS, SHORT, PAIRS, CONTROL))
"""And beside the best network that is fine-tuned alone."""

BESIDE_NOTHING = (
    *(Pair(JOINT, than) for than in (AVERAGE, FISHER, REGMEAN, PARENTS, BEST, ENSEMBLE)),
    *(Pair(method, AVERAGE) for method in (REPAIR, REGMEAN, FISHER)),
)
"""What learning from labels, and closed forms, are worth beside what learns nothing."""

PAIRED = (*BESIDE_CONTROLS, *BESIDE_ONE, *BESIDE_NOTHING)


def claims(results: Results) -> Iterator[Marked]:
    """Each with its mark, where it was measured; settings are blocks, over all numbers above two, which their names count."""
    for claim, places in CLAIMS:
        better = claim.better.removeprefix(f"{places.get('of')}: ")
        than = claim.than.removeprefix(f"{places.get('over')}: ")
        found = {}
        for block in results.blocks:
            over_all = results.difference(block, better, than, _more(block), **places)
            each = [results.difference(block, better, than, [n], **places) for n in _more(block)]
            if over_all is not None:
                counted = settings_told([x for x in each if x is not None], claim.sign)
                found[f"{block.name} (by number: {counted})"] = over_all
        if (judged := marked(claim, found.items())) is not None:
            yield judged


def differences(results: Results, block: Block) -> list[str]:
    """Lines of a table: learned rows minus what they have to be better than, by the number of networks."""
    rows = []
    for pair in PAIRED:
        by_number = _by_number(results, block, pair)
        cells = [_cell(by_number.get(n)) for n in block.counts]
        rows.append((pair.title, *cells, _cell(_over_all(results, block, pair))))
    header = (f"{block.name}, points", *(f"{n} networks" for n in block.counts), "all above two")
    return markdown_table(header, [row for row in rows if any(row[1:])])


def findings(results: Results) -> Iterator[str]:
    """A line for each question."""
    for block in results.blocks:
        yield from _helps(results, block)
    for block in results.blocks:
        yield from _beside_one(results, block)
    yield from _chance(results)
    for block in results.blocks:
        yield from _closed(results, block)
    for block in results.blocks:
        yield from _alignments(results, block)
    yield from _ends(results)
    yield from _memory(results)


def _more(block: Block) -> list[int]:
    """Numbers of networks at which alignments and orders of merging differ."""
    return [n for n in block.counts if n > 2]


def _by_number(results: Results, block: Block, pair: Pair) -> dict[int, Difference]:
    better, than, where = pair
    found = {n: results.difference(block, better, than, [n], of=where, over=where) for n in block.counts}
    return {n: x for n, x in found.items() if x is not None}


def _over_all(results: Results, block: Block, pair: Pair) -> Difference | None:
    better, than, where = pair
    return results.difference(block, better, than, _more(block), of=where, over=where)


def _cell(found: Difference | None) -> str:
    if found is None:
        return ""
    told = found.told(unit="")
    return f"**{told}**" if found.verdict else told


def _helps(results: Results, block: Block) -> Iterator[str]:
    """Where learned coefficients stop helping beside the average fine-tuned with as many steps."""
    parts = []
    for pair, found, over_all in _known(results, block, BESIDE_CONTROLS):
        told = [n for n, x in found.items() if x.verdict > 0]
        share = _share(results, block, pair, told) if told else ""
        parts.append(f"{_named(pair)}: {_where(found)} ({over_all.told()} over all above two{_within(over_all)}){share}")
    if parts:
        yield f"Where learning coefficients helps beside its control, {block.name}: {'; '.join(parts)}."


def _known(results: Results, block: Block, pairs: Iterable[Pair]) -> Iterator[tuple[Pair, dict[int, Difference], Difference]]:
    """Pairs that were measured, by number of networks and over all above two."""
    for pair in pairs:
        found, over_all = _by_number(results, block, pair), _over_all(results, block, pair)
        if found and over_all is not None:
            yield pair, found, over_all


def _named(pair: Pair) -> str:
    return pair.better + (f", {pair.alignment} alignment, which is in the gain" if pair.alignment else "")


def _within(found: Difference) -> str:
    if len(found.values) < 2:
        return ""
    low, high = (100 * x for x in found.interval)
    return f", {low:+.1f} to {high:+.1f} with 95 %"


def _share(results: Results, block: Block, pair: Pair, numbers: list[int]) -> str:
    """Whether it merges where it helps, or chooses one network."""
    shares = [results.mean(block, pair.better, n, pair.alignment, "share") for n in numbers]
    least = min(share * n for share, n in zip(shares, numbers, strict=True))
    if least < 2:  # no network has much more than its part of the average
        return ""
    return f", where one network has {100 * min(shares):.0f} to {100 * max(shares):.0f} % of it"


def _beside_one(results: Results, block: Block) -> Iterator[str]:
    """Whether anything that is learned is worth more than fine-tuning one network."""
    known = _known(results, block, BESIDE_ONE)
    parts = [f"{pair.better} {_where(found)} ({over_all.told()})" for pair, found, over_all in known]
    if parts:
        yield f"Beside the best network fine-tuned alone, {block.name}: {'; '.join(parts)}."


def _where(found: dict[int, Difference]) -> str:
    """At which numbers of networks the first is told to be higher or lower."""
    if all(len(x.values) < 2 for x in found.values()):
        return "one seed cannot tell"
    told = []
    for word, sign in (("higher", 1), ("lower", -1)):
        if at := [n for n, x in sorted(found.items()) if x.verdict == sign]:
            told.append(f"{word} at {', '.join(map(str, at))}")
    return " and ".join(told) or "told apart nowhere"


def _chance(results: Results) -> Iterator[str]:
    """How many intervals leave out zero, and how many would without any difference."""
    parts = []
    for name, pairs in (("controls", BESIDE_CONTROLS), ("the best network fine-tuned", BESIDE_ONE)):
        found = [x for block in results.blocks for pair in pairs for x in _by_number(results, block, pair).values()]
        told = [x for x in found if len(x.values) > 1]
        if told:
            counts = [sum(x.verdict == sign for x in told) for sign in (1, -1)]
            parts.append(f"beside {name} {counts[0]} of {len(told)} differences by number are higher and {counts[1]} lower")
    if parts:
        yield (
            f"In all, {'; '.join(parts)}. Without any difference one in twenty would be told apart; they overlap, as the fewer "
            "networks are among the more."
        )


def _closed(results: Results, block: Block) -> Iterator[str]:
    """What closed forms are worth, and whether they reach what is learned."""
    known = _known(results, block, BESIDE_NOTHING)
    parts = [f"{pair.title}: {_where(found)} ({over_all.told()})" for pair, found, over_all in known]
    if parts:
        yield f"Beside what learns nothing, {block.name}: {'; '.join(parts)}."


def _alignments(results: Results, block: Block) -> Iterator[str]:
    ways = [(AVERAGE, alignment, f"average, {alignment}") for alignment in block.alignments]
    parts = [_course(results, block, *way) for way in (*ways, *((m, None, m) for m in (PARENTS, ENSEMBLE)))]
    if min(block.counts) < max(block.counts):
        yield f"{block.name}, test accuracy by number of networks: {'; '.join(parts)}."


def _course(results: Results, block: Block, method: str, alignment: str | None, name: str) -> str:
    """From the fewest to the most, by way of the lowest and the highest."""
    curve = results.curve(block, method, alignment)
    few, many = min(curve), max(curve)
    low, high = min(curve, key=curve.__getitem__), max(curve, key=curve.__getitem__)
    told = f"{name} {100 * curve[few]:.1f} % at {few}, {100 * curve[many]:.1f} at {many}"
    between = [
        f"{word} {100 * curve[n]:.1f} at {n}" for word, n in (("lowest", low), ("highest", high)) if n not in (few, many)
    ]
    return told + (f" ({', '.join(between)})" if between else "")


def _ends(results: Results) -> Iterator[str]:
    """Where validation data would perhaps have chosen what was not tried."""
    each = {(row["seed"], row["block"], row["method"], row["models"] * (row["method"] != ONE), row["loss"]): row
            for row in results.rows if row["end"] != "" and row["alignment"] in ALIGNMENTS}  # fmt: skip
    rows = list(each.values())
    names = dict.fromkeys(row["method"] for row in rows)
    at_end = {name: [row for row in rows if row["method"] == name and row["end"]] for name in names}
    parts = [
        f"{name} in {len(ends)} of {sum(row['method'] == name for row in rows)} (N {', '.join(map(str, _numbers(ends)))})"
        for name, ends in at_end.items()
        if ends
    ]
    if rows:
        yield (
            f"The best value was at an end of all that were tried for {'; '.join(parts) or 'no row'}; 0 and 1 are the bounds "
            "of RegMean's, and where nothing improves on the start all rates are equal and the lowest is taken."
        )


def _numbers(rows: list) -> list[int]:
    return sorted({row["models"] for row in rows})


def _memory(results: Results) -> Iterator[str]:
    sizes = {(row["predicted"], row["planned"]) for row in results.rows if row["predicted"] != ""}
    ratios = [predicted / planned for predicted, planned in sizes]
    if ratios:
        yield (
            f"Memory of a step of learning, predicted before it runs, is {min(ratios):.2f} to {max(ratios):.2f} of what XLA "
            f"plans, for {len(ratios)} programs of different size."
        )
