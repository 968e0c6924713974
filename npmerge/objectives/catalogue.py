"""All objectives."""

from npmerge.objectives.base import Objective
from npmerge.objectives.cross_entropy import CrossEntropy
from npmerge.objectives.distillation import Distillation
from npmerge.objectives.entropy import Entropy
from npmerge.objectives.feature_matching import FeatureMatching
from npmerge.objectives.joint import Joint
from npmerge.objectives.next_token import NextToken
from npmerge.objectives.proximity import Proximity
from npmerge.objectives.sums import Sum
from npmerge.objectives.user import PerExample, UserObjective

OBJECTIVES: tuple[type[Objective], ...] = (
    CrossEntropy,
    NextToken,
    Distillation,
    Entropy,
    FeatureMatching,
    Proximity,
    Sum,
    Joint,
    PerExample,
    UserObjective,
)
