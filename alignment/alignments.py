"""All alignments. To add one: write its file, add its class here; the contract tests cover it."""

from alignment.activation_matching import ActivationMatching
from alignment.base import Alignment
from alignment.cca import CCA
from alignment.cycle_consistent import CycleConsistent
from alignment.group_matching import GroupMatching
from alignment.optimal_transport import OptimalTransport
from alignment.partial import PartialMatching
from alignment.procrustes import Procrustes
from alignment.scale import Scale
from alignment.soft_permutation import SoftPermutation
from alignment.straight_through import StraightThrough
from alignment.weight_matching import WeightMatching
from alignment.zipit import ZipIt

ALIGNMENTS: tuple[type[Alignment], ...] = (
    WeightMatching,
    ActivationMatching,
    Procrustes,
    CCA,
    Scale,
    GroupMatching,
    SoftPermutation,
    StraightThrough,
    CycleConsistent,
    ZipIt,
    PartialMatching,
    OptimalTransport,
)
