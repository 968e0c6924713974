"""What was expected of strangers' networks and what came out, in words that follow the rows."""

from collections.abc import Iterator

import numpy as np

from experiments.strangers.results import Results
from experiments.strangers.settings import PARENTS, PARTIAL, TEACHER
from experiments.strangers.ways import CONTROL, LEARNED, PARENT, SOLVED, WAYS
from npmerge.learning.shares import COLLAPSED


def findings(main: Results, at: int) -> Iterator[str]:
    """Sentences, each true of the rows that are there.

    Args:
        main: of the networks that everything was tried with.
        at: the number of images of which the aim speaks.
    """
    for name in (LEARNED, SOLVED):
        if main.of(name) and main.of(CONTROL):
            yield f"{name}, against its control: {_by_images(main, name, CONTROL)}."
    yield from _against_the_parents(main, at)
    yield from _collapsed(main, at)
    yield from _without_labels(main)
    if main.of(TEACHER):
        yield (
            f"Least squares, layer by layer on what the merged network itself computes: {main.cell(PARTIAL, size=1.0)} %; on "
            f"the parents' own activations, as published: {main.cell(TEACHER)} %."
        )


def _by_images(main: Results, one: str, other: str) -> str:
    shared = [n for n in main.images([one]) if main.of(other, n)]
    return "; ".join(f"{main.difference(one, other, n)} with {n:,} images" for n in shared)


def _against_the_parents(main: Results, at: int) -> Iterator[str]:
    merged = [name for name in WAYS if main.of(name, at) and WAYS[name].labels and WAYS[name].start != "better parent"]
    if not merged:
        return
    best, aim = max(merged, key=lambda name: main.mean(name, at)), max(main.of(PARENTS)[0]["each"])
    short = 100 * (aim - main.mean(best, at))
    yield (
        f"Aim: one network at least as good as the better parent ({100 * aim:.1f} %) from {at:,} labelled images. The best "
        f"that starts from a merge is {best} with {main.cell(best, at)} %: "
        + (f"{short:.1f} points short." if short > 0 else "reached.")
    )
    if main.of(PARENT, at):
        better = main.mean(PARENT, at) > main.mean(best, at)
        yield (
            f"The better parent by itself, fine-tuned alike, has {main.cell(PARENT, at)} %: "
            + ("for one good network a parent is a better start than any merge of both." if better else "the merge is better.")
        )


def _collapsed(main: Results, at: int) -> Iterator[str]:
    """What coefficients have become: where one network has nearly all of them, what was learned is that one."""
    shares = {name: np.mean([row["each"] for row in main.of(name, at) if row["each"]] or [[0.0]], axis=0) for name in WAYS}
    told = [f"{name} {', '.join(f'{100 * x:.0f} %' for x in each)}" for name, each in shares.items() if each.any()]
    if told:
        yield f"Shares of the networks in what was learned from {at:,} images: {'; '.join(told)}."
    if alone := [name for name, each in shares.items() if each.max() >= COLLAPSED]:
        yield f"So this is one of the networks again rather than a merge: {', '.join(alone)}."


def _without_labels(main: Results) -> Iterator[str]:
    ways = [name for name in WAYS if not WAYS[name].labels and WAYS[name].start != "better parent"]
    tried = {(name, row["images"]) for name in (*ways, PARTIAL) for row in main.of(name, size=1.0)}
    if tried:
        name, images = max(sorted(tried), key=lambda pair: main.mean(pair[0], pair[1], 1.0))
        reached = "reached" if main.mean(name, images, size=1.0) > 0.85 else "not reached"
        yield (
            f"Aim: a merge above 85 % without labels. The best of one network's size is {name} with {images:,} images, "
            f"{main.cell(name, images, size=1.0)} %: {reached}{_larger(main)}."
        )


def _larger(main: Results) -> str:
    """The smallest of more than one network's operations that reaches it."""
    above = sorted(row["size"] for row in main.of(PARTIAL) if row["size"] > 1 and main.mean(PARTIAL, size=row["size"]) > 0.85)
    return f"; {PARTIAL} of {above[0]:g} times its operations has {main.cell(PARTIAL, size=above[0])} %" if above else ""
