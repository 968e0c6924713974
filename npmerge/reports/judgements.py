"""Words on networks that were judged on examples: the same in reports, on the terminal and in the model card."""

from collections.abc import Mapping

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
