"""What was expected inside merges and what came out, in words that follow the rows."""

from collections.abc import Iterator

import numpy as np

from experiments.claims import Claim, Marked, marked
from experiments.differences import Difference
from experiments.landscape.results import Results, by_images, mean, minus
from experiments.landscape.settings import (
    AFTER,
    BEFORE,
    BOTH,
    CONTROL,
    INSIDE,
    LEARNED,
    LINES,
    PERMUTATIONS,
    PERMUTED,
    PLAIN,
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
    """What papers say, with its mark; settings are alignments, and parents whose images are shown."""
    lower = Claim(
        "Ainsworth et al. 2023, arXiv 2209.04836", "a permutation lowers the barrier", "barrier", UNALIGNED, -1, " nats"
    )
    keeps = Claim(
        "Feature visualisations of permute-and-average, UniReps 2024", "the permuted average keeps features of its parents",
        f"answer of the {PERMUTED} to images found for a parent's units", f"that of the {PLAIN}"
    )  # fmt: skip
    unaligned = results.barriers(UNALIGNED)
    kept = ((f"of {parent}", _kept(results, parent)) for parent in (A, B) if results.units)
    for claim, found in (
        (lower, ((name, minus(results.barriers(name), unaligned)) for name in PERMUTATIONS)),
        (keeps, kept),
    ):
        if (judged := marked(claim, found)) is not None:
            yield judged


def _kept(results: Results, parent: str) -> Difference | None:
    """How much more the permuted average answers to a parent's images than the average as it is."""
    return minus(*(by_images(results, name, of=parent) for name in (PERMUTED, PLAIN)))


def _lines(results: Results) -> Iterator[str]:
    unaligned = results.barriers(UNALIGNED)
    told = "; ".join(
        f"{name} {mean(results.barriers(name)):.2f} nats ({_said(minus(results.barriers(name), unaligned), '')})"
        for name in LINES
        if name != UNALIGNED and results.barriers(name)
    )
    yield (
        f"Expected: alignment lowers the barrier between the parents, {mean(unaligned):.2f} nats without one. Found, with the "
        f"difference to that: {told}."
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
                f"Plane {name}: loss {corners[0]:.2f} at A, {corners[1]:.2f} at B, {corners[2]:.2f} at the merge, "
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


def _units(results: Results) -> Iterator[str]:
    if not results.units:
        return
    above = np.mean([row["reached"] > row["best_real"] for row in results.units])
    climbed = np.mean([row["reached"] > row["start"] for row in results.units])
    yield (
        f"Activation maximisation: {100 * climbed:.0f} % of the units answer more to their image than to the noise it started "
        f"from, {100 * above:.0f} % more than to any of {results.settings['compared']} real images."
    )
    shares = {name: by_images(results, name) for name in INSIDE if name != A}
    told = ", ".join(f"{name} {100 * mean(share):.0f} %" for name, share in shares.items())
    kept = ", ".join(f"{_said(_kept(results, parent))} for {parent}" for parent in (A, B))
    yield (
        "Matched units, shown the images found for A's, answer so much of what A's do (both in their own deviations on real "
        f"images): {told}. Half of an average is A, whatever is averaged; so what counts is the permuted average minus the "
        f"{PLAIN}, shown the images of each parent: {kept}. Learned merge minus permuted average, for A's: "
        f"{_said(minus(shares[LEARNED], shares[PERMUTED]))}."
    )


def _similarities(results: Results) -> Iterator[str]:
    if not results.similarity:
        return
    learned, average, control = (results.alike(A, name) for name in (LEARNED, PERMUTED, CONTROL))
    yield (
        f"CKA with A, the mean over layers: B {mean(results.alike(A, B)):.3f}, permuted average {mean(average):.3f}, learned "
        f"merge {mean(learned):.3f}, its control {mean(control):.3f}, an untrained network "
        f"{mean(results.alike(A, UNTRAINED)):.3f}. Learned merge minus average: {_said(minus(learned, average), '')}."
    )
    better = minus(results.accuracies(LEARNED), results.accuracies(PERMUTED))
    closer = minus(learned, average)
    if better is not None and closer is not None:
        same = np.sign(better.mean) == np.sign(closer.mean)
        yield (
            f"Between average and learned merge CKA with A goes {'the same way as' if same else 'the other way than'} "
            f"accuracy, which changes by {100 * better.mean:+.1f} points while CKA changes by {closer.mean:+.3f}."
        )


def _caveats(results: Results) -> Iterator[str]:
    if results.caveats:
        far = max(row["distance"] for row in results.caveats)
        rows = [row for row in results.caveats if row["distance"] == far]
        told = "; ".join(f"{what}: {_moves(rows, what)}" for what in dict.fromkeys(row["what"] for row in rows))
        moved = max(row["change"] for row in results.caveats)
        changed = sum(row["accuracy"] != row["accuracy_before"] for row in results.caveats)
        yield (
            "CKA is not a measure of the function (Davari et al. 2023): features that move along a direction which the last "
            f"layer does not read change the logits by at most {moved:.1g} of the largest and accuracy in {changed} of "
            f"{len(results.caveats)} rows, but CKA, at {far:g} deviations, thus: {told}."
        )
        both = [row for row in rows if row["what"] == BOTH]
        rises = [np.mean([row[name] - row[f"{name}_before"] for row in both]) > 0 for name in ("cka", "biased")]
        words = ["more" if rise else "less" for rise in rises]
        yield (
            f"One image that lies far out in both networks makes them look {words[0]} alike than they are by the unbiased "
            f"estimate, {words[1]} by the biased one."
        )


def _moves(rows: list, what: str) -> str:
    found = [row for row in rows if row["what"] == what]
    mean = {name: np.mean([row[name] for row in found]) for name in ("cka_before", "cka", "biased_before", "biased")}
    return "from {cka_before:.3f} to {cka:.3f} (biased from {biased_before:.3f} to {biased:.3f})".format(**mean)


def _said(found: Difference | None, unit: str = " points") -> str:
    if found is None:
        return "not measured"
    return f"{found.told(scale=100 if unit else 1, unit=unit)}, {found.word}"
