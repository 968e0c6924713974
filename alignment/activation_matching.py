"""Activation matching: permutations that make the activations agree."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from alignment.activations import ActivationAlignment, correlation
from alignment.assignment import assign
from alignment.base import PermutationAlignment
from alignment.moments import Moments


@dataclass(frozen=True)
class ActivationMatching(ActivationAlignment, PermutationAlignment):
    """Pair the units whose activations correlate most on the same inputs.

    A linear assignment on the Pearson correlation of post-nonlinearity activations, for each node independently (Li et al.
    2015; Ainsworth et al. 2022, section 3.1); on two levels for heads and what is inside them. Dead units have correlation
    zero with everything and share what places are left. Needs `NodeMoments`.
    """

    def solve(self, moments: Moments) -> Int[np.ndarray, " units"]:
        """The unit put at each place."""
        return assign(correlation(moments))

    def of_permutation(self, index: Int[np.ndarray, " units"]) -> Int[np.ndarray, " units"]:
        """The index itself."""
        return index
