"""What was expected inside merges and what came out, in words that follow the rows."""

from collections.abc import Iterator

import numpy as np

from experiments.claims import Claim, Marked, marked
from experiments.differences import Difference, ranged, settings_told
from experiments.landscape.results import Results, by_images, mean, minus
from experiments.landscape.settings import (
    AFTER,
    BEFORE,
    BOTH,
    CONTROL,
    LEARNED,
    LINES,
    PERMUTATIONS,
    PERMUTED,
    PLAIN,
    RENEWED,
    UNALIGNED,
    UNTRAINED,
    A,
    B,
)


def findings(results: Results) -> Iterator[str]:
    """Sentences, each true of the rows that are there."""
    yield from _lines(results)
    yield from _planes(results)
    yield from _merges(results)
    yield from _units(results)
    yield from _similarities(results)
    yield from _caveats(results)


def claims(results: Results) -> Iterator[Marked]:
    """What papers say, with its mark; settings are alignments."""
    lower = Claim(
        "Ainsworth et al. 2023, arXiv 2209.04836", "a permutation lowers the barrier", "barrier", UNALIGNED, -1, " nats"
    )
    unaligned = results.barriers(UNALIGNED)
    if (judged := marked(lower, ((name, minus(results.barriers(name), unaligned)) for name in PERMUTATIONS))) is not None:
        yield judged


def _lines(results: Results) -> Iterator[str]:
    unaligned = results.barriers(UNALIGNED)
    for name in PERMUTATIONS:
        if results.barriers(name):
            yield (
                f"Expected: {name} lowers the barrier between the parents. Found: {mean(results.barriers(name)):.2f} nats, "
                f"without alignment {mean(unaligned):.2f}; the difference: "
                f"{_said(minus(results.barriers(name), unaligned), '')}."
            )
    for name in (name for name in LINES if name not in (*PERMUTATIONS, UNALIGNED)):
        if results.barriers(name):
            end, b = (results.along(x, lambda row: row["loss"][-1]) for x in (name, UNALIGNED))
            middle, unaligned = results.middle(name), results.middle(UNALIGNED)
            yield (
                f"{name} is no permutation: its line ends at a network of loss {mean(end):.2f} where B has {mean(b):.2f}, so "
                f"it has no barrier. In the middle its loss is {mean(middle):.2f} nats, minus that without alignment "
                f"{_said(minus(middle, unaligned), '')}."
            )


def _planes(results: Results) -> Iterator[str]:
    for name in (BEFORE, AFTER):
        rows = [row for row in results.planes if row["plane"] == name]
        if rows:
            corners = np.mean([row["at_corners"] for row in rows], axis=0)
            lowest = [float(np.min(row["loss"])) for row in rows]
            below = sum(low < min(row["at_corners"][:2]) for low, row in zip(lowest, rows, strict=True))
            height = np.mean([row["corners"][2][1] / row["corners"][1][0] for row in rows])
            yield (
                f"Plane {name}: loss {corners[0]:.2f} at A, {corners[1]:.2f} at B, "
                f"{np.mean([row['at_middle'] for row in rows]):.2f} at their average, {corners[2]:.2f} at the merge, "
                f"{np.mean(lowest):.2f} at the lowest point of the grid, which is below both parents in {below} of {len(rows)} "
                f"seeds (of so many points the lowest looks better than it is). The merge is {100 * height:.0f} % of the "
                "distance between the parents away from the line through them."
            )


def _merges(results: Results) -> Iterator[str]:
    learned, control, average = (results.accuracies(name) for name in (LEARNED, CONTROL, PERMUTED))
    yield (
        f"The learned merge against the average it starts from: {_said(minus(learned, average))}; its control, all weights "
        f"fine-tuned on the same images, against the learned merge: {_said(minus(control, learned))}."
    )
    for parent in (A, B):
        yield (
            f"Published networks have running statistics of their training, merges those of {results.settings['measured']:,} "
            f"images that are not augmented. What that alone makes of {parent}: "
            f"{_said(minus(results.accuracies(RENEWED[parent]), results.accuracies(parent)))}."
        )


def _units(results: Results) -> Iterator[str]:
    if not results.units:
        return
    above = np.mean([row["reached"] > row["best_real"] for row in results.units])
    climbed = np.mean([row["reached"] > row["start"] for row in results.units])
    yield (
        f"Activation maximisation: {100 * climbed:.0f} % of the units answer more to their image than to the noise it started "
        f"from, {100 * above:.0f} % more than to any of {results.settings['compared']} real images."
    )
    loud, real = (np.mean([row[name] for row in results.units]) for name in ("rms", "rms_real"))
    yield (
        f"Images have no bounds: the root of their mean square is {loud:.2f}, of real ones {real:.2f}, so an answer that no "
        "real image reaches says little."
    )
    for parent in (A, B):
        more = results.more_by_images(PERMUTED, PLAIN, parent)
        yield (
            f"Shown the images of {parent}'s units, the {PERMUTED} answers more than the {PLAIN} in {sum(more)} of {len(more)} "
            f"units. Share of {parent}'s own answer, {PERMUTED} minus {PLAIN}, whose unit has a half of that unit, too, layer "
            f"by layer: {_by_layer(results, PERMUTED, PLAIN, parent)}; {LEARNED} minus {PERMUTED}: "
            f"{_by_layer(results, LEARNED, PERMUTED, parent)}; {LEARNED} minus its control: "
            f"{_by_layer(results, LEARNED, CONTROL, parent)}."
        )


def _by_layer(results: Results, name: str, than: str, parent: str) -> str:
    """Differences of shares in the layers that are visualised: verdicts and range."""
    shares = {node: minus(*(by_images(results, x, node, of=parent) for x in (name, than))) for node in results.visualised()}
    found = {node: x for node, x in shares.items() if x is not None}
    return f"{settings_told(list(found.values()), 0)}, {ranged(found)}"


def _similarities(results: Results) -> Iterator[str]:
    if not results.similarity:
        return
    learned, average, control = (results.alike(A, name) for name in (LEARNED, PERMUTED, CONTROL))
    yield (
        f"CKA with A, the mean over layers: B {mean(results.alike(A, B)):.3f}, permuted average {mean(average):.3f}, learned "
        f"merge {mean(learned):.3f}, its control {mean(control):.3f}, an untrained network "
        f"{mean(results.alike(A, UNTRAINED)):.3f}. Learned merge minus average: {_said(minus(learned, average), '')}; learned "
        f"merge minus control: {_said(minus(learned, control), '')}."
    )


def _caveats(results: Results) -> Iterator[str]:
    if results.caveats:
        far = max(row["distance"] for row in results.caveats)
        rows = [row for row in results.caveats if row["distance"] == far]
        told = "; ".join(f"{what}: {_moves(rows, what)}" for what in dict.fromkeys(row["what"] for row in rows))
        moved = max(row["change"] for row in results.caveats)
        changed = sum(row["accuracy"] != row["accuracy_before"] for row in results.caveats)
        yield (
            "CKA is not a measure of the function (Davari et al. 2023, arXiv 2210.16156): features that move along a direction "
            f"which the last layer does not read change the logits by at most {moved:.1g} of the largest and accuracy in "
            f"{changed} of {len(results.caveats)} rows, but CKA, at {far:g} deviations, thus: {told}."
        )
        both = [row for row in rows if row["what"] == BOTH]
        rises = [np.mean([row[name] - row[f"{name}_before"] for row in both]) > 0 for name in ("cka", "biased")]
        words = ["raises" if rise else "lowers" for rise in rises]
        yield (
            f"One image that lies far out in both networks {words[0]} the unbiased estimate and {words[1]} the biased one, and "
            "what the networks compute is as alike as before."
        )


def _moves(rows: list, what: str) -> str:
    found = [row for row in rows if row["what"] == what]
    mean = {name: np.mean([row[name] for row in found]) for name in ("cka_before", "cka", "biased_before", "biased")}
    return "from {cka_before:.3f} to {cka:.3f} (biased from {biased_before:.3f} to {biased:.3f})".format(**mean)


def _said(found: Difference | None, unit: str = " points") -> str:
    if found is None:
        return "not measured"
    return f"{found.told(scale=100 if unit else 1, unit=unit)}, {found.word}"
