"""What the paper says of experts that are trained too long and what came out, in words that follow the rows."""

from collections.abc import Iterable, Iterator

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
    PLATEAU,
    TRAININGS,
)

PAPER = "arXiv 2506.14126"
Found = Iterable[tuple[str, Difference | None]]


def claims(results: Results) -> Iterator[Marked]:
    """Each with its mark, where it was measured; settings are setups and methods."""
    early, eighth = results.moments[0], _eighth(results)
    told: list[tuple[Claim, Found]] = [
        (Claim(PAPER, "full experts merge better before their training ends", f"{eighth} steps (an eighth)", "all steps"),
         _moments(results, FULL, MERGES, eighth, -1)),
        (Claim(PAPER, "LoRA experts of very few steps merge better than those of all", f"{early} steps", "all steps"),
         _moments(results, LORA, MERGES, early, -1)),
        (Claim(PAPER, "LoRA experts merge better before their training ends", "moment of lowest selection loss", "all steps"),
         _moments(results, LORA, MERGES, CHOSEN, -1)),
        (Claim(PAPER, "a mixture of LoRA experts is better of experts of fewer steps", "the moment of lowest selection loss",
               "all steps"), _moments(results, LORA, (EVEN, MIXTURE), CHOSEN, -1)),
        (Claim(PAPER, "longer training is better for the experts themselves", "all steps", f"{eighth} steps (an eighth)"),
         ((f"{x}, {t}", results.between(x, t, EXPERTS, -1, eighth)) for x in results.setups for t in TRAININGS)),
        (Claim(PAPER, "hard examples (EL2N) are learnt late: an eighth of the steps brings less of them than of easy ones",
               "part of what is learnt in all steps that an eighth has, easiest", "hardest"), _late(results, eighth)),
        (Claim(PAPER, "what the average forgets are the hard examples", "forgotten of the hardest", "of the easiest"),
         _forgotten(results)),
        (Claim(PAPER, "early stopping for each task helps the merge", "stopped at a plateau", "all steps"),
         (pair for t in TRAININGS for pair in _moments(results, t, MERGES, PLATEAU, -1))),
    ]  # fmt: skip
    for claim, found in told:
        if (judged := marked(claim, found)) is not None:
            yield judged


def _eighth(results: Results) -> int:
    """The moment that is nearest to an eighth of all steps."""
    return min(results.moments, key=lambda m: abs(np.log(m / (results.moments[-1] / 8))))


def _moments(results: Results, training: str, methods: Iterable[str], moment: object, than: object) -> Found:
    for setup in results.setups:
        for method in methods:
            yield f"{setup}, {training}, {method}", results.between(setup, training, method, moment, than)


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


def _forgotten(results: Results) -> Found:
    last, hardest = results.moments[-1], results.settings["groups"] - 1
    for setup in results.setups:
        for training in TRAININGS:
            groups = [results.group(setup, training, last, group, "forgotten") for group in (hardest, 0)]
            yield f"{setup}, {training}", paired([(groups[0], groups[1])])


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
    rows = [row for row in results.of(setup, training, AVERAGE) if row["steps"] == PLATEAU]
    if not rows:
        return
    steps = [step for row in rows for step in row["trained"]]
    chosen = results.between(setup, training, AVERAGE, PLATEAU, CHOSEN)
    beside = "" if chosen is None else f": {chosen.told()} ({chosen.word})"
    yield (
        f"{setup}, {training}: the rule stops experts after {min(steps)} to {max(steps)} steps; their average beside that of "
        f"the one moment that selection data choose{beside}."
    )
