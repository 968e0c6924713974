"""All alignments. To add one: write its file, add its class here; the contract tests cover it."""

from alignment.base import Alignment
from alignment.methods.activation_matching import ActivationMatching
from alignment.methods.cca import CCA
from alignment.methods.cycle_consistent import CycleConsistent
from alignment.methods.group_matching import GroupMatching
from alignment.methods.optimal_transport import OptimalTransport
from alignment.methods.partial import PartialMatching
from alignment.methods.procrustes import Procrustes
from alignment.methods.scale import Scale
from alignment.methods.soft_permutation import SoftPermutation
from alignment.methods.straight_through import StraightThrough
from alignment.methods.weight_matching import WeightMatching
from alignment.methods.zipit import ZipIt

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
