"""Words on networks that were judged on examples: the same in reports, on the terminal and in the model card."""

from collections.abc import Mapping
from typing import Any

from npmerge.reports.numbers import plural

BASE = "base"
"""What the base is called in tables, where no model is."""

BEST = "the most accurate input"
"""What the best of the networks that went into a merge is called."""


def most_accurate(accuracies: Mapping[str, float]) -> str:
    """The best of the networks that went into a merge, its base among them; of equals a model before the base.

    Args:
        accuracies: by the name of each network.
    """
    return max(accuracies, key=lambda name: (accuracies[name], name != BASE))


def counted(examples: int, predictions: int, kind: str) -> str:
    """`36 held-out examples (2,304 predictions)`; predictions only where an example has several, as a text has.

    Args:
        examples: how many.
        predictions: how many of them all together.
        kind: of the examples, such as held-out.
    """
    several = f" ({predictions:,} predictions)" if predictions > examples else ""
    return f"{plural(examples, f'{kind} example'.strip())}{several}"


def examples_of(evaluation: Mapping[str, Any]) -> str:
    """The same of what a learned merge was measured on, as `history.json` has it."""
    predictions = next(iter(evaluation["networks"].values()))["examples"]
    kind = "held-out" if evaluation["held_out"] else "training"
    return counted(evaluation.get("count", predictions), predictions, kind)
