"""The ways to learn a merge of strangers' networks, each with a start, what is learned, and from what."""

from dataclasses import dataclass
from typing import Literal

import npmerge as nm
from npmerge.granularity import Granularity

Start = Literal["matched", "solved", "better parent"]


@dataclass(frozen=True)
class Way:
    """One way to learn.

    Attributes:
        start: the average of networks that were aligned by activation matching, the merge of their size by PLeaS, or the parent
            that is better on validation data.
        granularity: of coefficients; None for all weights.
        labels: whether the labels of the images are used, or else what the parents predict.
        rates: of Adam, from which validation data choose.
    """

    start: Start
    granularity: Granularity | None
    labels: bool
    rates: tuple[float, ...]


COEFFICIENTS, WEIGHTS, SMALL = (0.0125, 0.05, 0.2), (1e-3, 3e-3, 1e-2), (3e-4, 1e-3, 3e-3)
"""As many for all; those from good starts are smaller. In a first try the best ones of others lay at the border."""

LEARNED, CONTROL = "NP Merge, per parameter", "control: aligned average fine-tuned"
CHANNELS, TENSORS = "NP Merge, per channel", "NP Merge, per tensor"
SOLVED = "PLeaS, fine-tuned"
TAUGHT, TAUGHT_SOLVED = "NP Merge, per parameter, no labels", "PLeaS, distilled, no labels"
TAUGHT_CONTROL = "control: aligned average distilled, no labels"
PARENT, TAUGHT_PARENT = "control: better parent fine-tuned", "better parent distilled, no labels"

WAYS = {
    TENSORS: Way("matched", nm.PerTensor(), True, COEFFICIENTS),
    CHANNELS: Way("matched", nm.PerChannel(), True, COEFFICIENTS),
    LEARNED: Way("matched", nm.PerParameter(), True, COEFFICIENTS),
    CONTROL: Way("matched", None, True, WEIGHTS),
    SOLVED: Way("solved", None, True, SMALL),
    PARENT: Way("better parent", None, True, SMALL),
    TAUGHT: Way("matched", nm.PerParameter(), False, COEFFICIENTS),
    TAUGHT_CONTROL: Way("matched", None, False, WEIGHTS),
    TAUGHT_SOLVED: Way("solved", None, False, SMALL),
    TAUGHT_PARENT: Way("better parent", None, False, SMALL),
}
