"""What the paper says of experts that are trained too long and what came out, in words that follow the rows."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from experiments.claims import Claim, Marked, marked
from experiments.differences import Difference, paired
from experiments.overtraining.results import CHOSEN, Results
from experiments.overtraining.settings import (
    AVERAGE,
    CONTROL,
    EVEN,
    EXPERTS,
    FULL,
    LEARNED,
    LORA,
    MERGES,
    MIXTURE,
    MIXTURES,
    PLATEAU,
    TRAININGS,
)

PAPER = "arXiv 2506.14126"
Found = Iterable[tuple[str, Difference | None]]


def claims(results: Results) -> Iterator[Marked]:
    """Each with its mark, where it was measured; settings are setups, each the mean over methods."""
    early, eighth = results.moments[0], _eighth(results)
    an_eighth = f"{eighth} steps{' (an eighth)' * (8 * eighth == results.moments[-1])}"
    told: list[tuple[Claim, Found]] = [
        (Claim(PAPER, "full experts merge better before their training ends", an_eighth, "all steps"),
         _moments(results, (FULL,), MERGES, eighth)),
        (Claim(PAPER, "LoRA experts merge better before their training ends", an_eighth, "all steps"),
         _moments(results, (LORA,), MERGES, eighth)),
        (Claim(PAPER, "LoRA experts of very few steps merge better than those of all", f"{early} steps", "all steps"),
         _moments(results, (LORA,), MERGES, early)),
        (Claim(PAPER, "a mixture of LoRA experts is better of experts of fewer steps", an_eighth, "all steps"),
         _moments(results, (LORA,), MIXTURES, eighth)),
        (Claim(PAPER, "longer training is better for the experts themselves", an_eighth, "all steps", sign=-1),
         _moments(results, TRAININGS, (EXPERTS,), eighth)),
        (Claim(PAPER, "hard examples (EL2N) are learnt late: an eighth of the steps brings less of them than of easy ones",
               "part of what is learnt in all steps that an eighth has, easiest", "hardest"), _late(results, eighth)),
        (Claim(PAPER, "what longer training makes the average forget are the hard examples",
               "rise of what is forgotten of the hardest, from an eighth to all steps", "of the easiest"),
         _forgotten(results, eighth)),
        (Claim(PAPER, "early stopping for each task helps the merge", "stopped at a plateau", "all steps"),
         _moments(results, TRAININGS, MERGES, PLATEAU)),
    ]  # fmt: skip
    for claim, found in told:
        if (judged := marked(claim, found)) is not None:
            yield judged


def _eighth(results: Results) -> int:
    """The moment that is nearest to an eighth of all steps."""
    return min(results.moments, key=lambda m: abs(np.log(m / (results.moments[-1] / 8))))


def _moments(results: Results, trainings: Iterable[str], methods: Sequence[str], moment: object) -> Found:
    """How much more a moment has than the last one."""
    for setup in results.setups:
        for training in trainings:
            yield f"{setup}, {training}", results.between(setup, training, methods, moment, -1)


def _late(results: Results, eighth: int) -> Found:
    """How much of the experts' last accuracy an eighth of the steps has: of the easiest group beyond the hardest."""
    last, hardest = results.moments[-1], results.settings["groups"] - 1
    for setup in results.setups:
        for training in TRAININGS:
            parts = []
            for group in (0, hardest):
                early, late = (results.group(setup, training, m, group, "expert") for m in (eighth, last))
                parts.append({seed: early[seed] / max(late[seed], 1e-9) for seed in early.keys() & late.keys()})
            yield f"{setup}, {training}", paired([(parts[0], parts[1])])


def _forgotten(results: Results, eighth: int) -> Found:
    """How much more of the hardest group than of the easiest is forgotten at the end that was not at an eighth."""
    last, hardest = results.moments[-1], results.settings["groups"] - 1
    for setup in results.setups:
        for training in TRAININGS:
            rises = []
            for group in (hardest, 0):
                early, late = (results.group(setup, training, m, group, "forgotten") for m in (eighth, last))
                rises.append({seed: late[seed] - early[seed] for seed in early.keys() & late.keys()})
            yield f"{setup}, {training}", paired([(rises[0], rises[1])])


def findings(results: Results) -> Iterator[str]:
    """A line for each question."""
    for setup in results.setups:
        for training in TRAININGS:
            yield from _best_moments(results, setup, training)
    for setup in results.setups:
        for training in TRAININGS:
            yield from _beside_controls(results, setup, training)
            yield from _stopping(results, setup, training)


def _best_moments(results: Results, setup: str, training: str) -> Iterator[str]:
    """At which moment each method is best, and what the whole training costs it."""
    told = []
    for method in (EXPERTS, *MERGES, EVEN, MIXTURE):
        means = {m: results.mean(setup, training, method, m) for m in results.moments}
        known = {m: x for m, x in means.items() if np.isfinite(x)}
        if known:
            best = max(known, key=lambda m: known[m])
            told.append(f"{method} {100 * known[best]:.1f} % at {best} and {100 * known[max(known)]:.1f} % at the end")
    if told:
        yield f"{setup}, {training}: highest test accuracy over moments: {'; '.join(told)}."


def _beside_controls(results: Results, setup: str, training: str) -> Iterator[str]:
    for method, than in ((LEARNED, CONTROL), (LEARNED, AVERAGE), (MIXTURE, EVEN), (MIXTURE, CONTROL)):
        found = results.beside(setup, training, method, than, [*results.moments, PLATEAU])
        if found is not None:
            yield f"{setup}, {training}: {method} minus {than}: {found.told()} over {found.points} moments ({found.word})."


def _stopping(results: Results, setup: str, training: str) -> Iterator[str]:
    chosen = results.between(setup, training, MERGES, CHOSEN, -1)
    if chosen is not None:
        yield (
            f"{setup}, {training}: merges of the one moment that selection data choose minus those of all steps: "
            f"{chosen.told()}, the mean over {chosen.points} methods ({chosen.word})."
        )
    steps = [step for row in results.of(setup, training, AVERAGE) if row["steps"] == PLATEAU for step in row["trained"]]
    if not steps:
        return
    pairs = [(results.values(setup, training, m, PLATEAU), results.values(setup, training, m, CHOSEN)) for m in MERGES]
    beside = paired(pairs)
    words = "" if beside is None else f"; their merges minus those of that moment: {beside.told()} ({beside.word})"
    yield f"{setup}, {training}: the rule keeps experts of {min(steps)} to {max(steps)} steps{words}."
