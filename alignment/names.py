"""What paths of parameters tell, without a look at the arrays."""

import re

STATISTICS = r"(^|/)(batch_stats|running_mean|running_var)(/|$)|^(?!params/)(.*/)?(mean|var)(/value)?$"
"""Paths of running statistics, which are estimated from data and never matched or merged as weights are.

Flax Linen keeps them under `batch_stats`, PyTorch calls them `running_mean` and `running_var`, NNX `mean` and `var` (which are
weights where they stand under `params`).
"""


def is_statistic(path: str) -> bool:
    """Whether a leaf holds running statistics of a normalisation layer rather than weights."""
    return re.search(STATISTICS, path) is not None
