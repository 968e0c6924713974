"""The alignments that are tried on strangers' networks."""

from collections.abc import Mapping

from alignment import (
    CCA,
    ActivationMatching,
    CycleConsistent,
    GroupMatching,
    OptimalTransport,
    Procrustes,
    Scale,
    SoftPermutation,
    StraightThrough,
    WeightMatching,
    ZipIt,
)
from alignment.base import Alignment

MATCHING, ZIPPED = "activation matching", "ZipIt"

ALIGNMENTS: Mapping[str, Alignment] = {
    "weight matching": WeightMatching(),
    MATCHING: ActivationMatching(),
    "Procrustes": Procrustes(approximate=True),
    "CCA": CCA(approximate=True),
    "scales after weight matching": Scale(),
    "group matching": GroupMatching(),
    "soft permutation": SoftPermutation(start=WeightMatching()),
    "straight-through": StraightThrough(),
    "cycle-consistent": CycleConsistent(),
    ZIPPED: ZipIt(),
    "optimal transport": OptimalTransport(),
}
"""Every alignment that keeps the size of one network. Rotations and linear maps change a network of ReLUs: approximately."""
