"""What became of each tensor, and of the merge as a whole."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from npmerge.recipe.plan import Plan, Step
from npmerge.reports.numbers import duration, size


@dataclass(frozen=True)
class Outcome:
    """One tensor of the merged model.

    Attributes:
        name: of the tensor.
        action: "merge" or "copy".
        nbytes: written.
        digest: sha256 of the CRC-32 of its blocks.
        nonfinite: entries that are NaN or infinite; not counted where it is copied.
        rounding: the largest |stored - merged in float32|.
        seconds: from the first byte read to the last one written; other tensors are worked on meanwhile.
        kept: whether an earlier run wrote it.
    """

    name: str
    action: str
    nbytes: int
    digest: str
    nonfinite: int = 0
    rounding: float = 0.0
    seconds: float = 0.0
    kept: bool = False


def digests(outcomes: Iterable[Outcome], files: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """One digest for each file, given which tensors it holds: the sha256 of their names and digests.

    Unlike the sha256 of the file itself it is known once the tensors are, and takes no second pass over what was written.
    """
    own = {x.name: x.digest for x in outcomes}
    return {
        file: hashlib.sha256("".join(f"{name} {own[name]}\n" for name in names).encode()).hexdigest()
        for file, names in files.items()
    }


def summary(plan: Plan, outcomes: Sequence[Outcome], seconds: float, peak_bytes: int) -> list[str]:
    """What a user wants to know when it is done, a line each.

    Args:
        plan: that was followed.
        outcomes: in the order of its steps.
        seconds: wall time.
        peak_bytes: the most memory that the process held.
    """
    counts = {action: sum(x.action == action for x in outcomes) for action in ("merge", "copy")}
    kept, (read, written) = sum(x.kept for x in outcomes), (plan.bytes_in, plan.bytes_out)
    return [
        f"{counts['merge']} tensors merged, {counts['copy']} copied, {len(plan.skipped)} of the inputs left out"
        + (f"; {kept} were there from an earlier run" if kept else ""),
        f"{size(read)} read, {size(written)} written in {duration(seconds)}, {size(peak_bytes)} of memory at most",
        *_rounding(outcomes),
        *_nonfinite(outcomes),
        *_slowest(outcomes),
    ]


def _rounding(outcomes: Sequence[Outcome]) -> list[str]:
    worst = max(outcomes, key=lambda x: x.rounding, default=None)
    if worst is None or worst.rounding == 0:
        return []
    return [f"rounding to the stored dtype changed no entry by more than {worst.rounding:.3g}, absolute ({worst.name})"]


def _nonfinite(outcomes: Sequence[Outcome]) -> list[str]:
    found = [x for x in outcomes if x.nonfinite]
    named = ", ".join(f"{x.name} ({x.nonfinite})" for x in found[:5]) + (
        f" and {len(found) - 5} more" if len(found) > 5 else ""
    )
    return [f"warning: NaN or infinite entries in {named}"] if found else []


WORTH_TELLING = 0.1
"""Seconds of a tensor below which nobody asks which was slow."""


def _slowest(outcomes: Sequence[Outcome]) -> list[str]:
    made = sorted((x for x in outcomes if not x.kept and x.seconds >= WORTH_TELLING), key=lambda x: -x.seconds)[:3]
    return [f"slowest: {', '.join(f'{x.name} {duration(x.seconds)}' for x in made)}"] if made else []


def line(step: Step, outcome: Outcome) -> str:
    """One tensor in a line: what was done, how large it is, how long it took."""
    done = f"{step.method} of {len(step.sources)}" if step.action == "merge" else "copied"
    when = "from an earlier run" if outcome.kept else duration(outcome.seconds)
    return "  ".join([step.name, str(list(step.shape)), step.dtype, done, when, *([step.note] if step.note else [])])
