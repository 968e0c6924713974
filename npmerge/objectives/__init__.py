"""What learning minimises, one objective a file, and how an objective becomes a loss of a merge's parameters.

Objectives are values: `objective(apply, params, stack, batch) -> scalar`, with batches `(inputs, targets)`, or `(inputs,
targets, mask)` where some examples are padding. `Sum` adds them, `Joint` has batches of several tasks, and `weight_space`
turns one into the `loss(theta, stack, batch)` that `fit` descends on.
"""

from typing import TYPE_CHECKING

from alignment.lazy import make_lazy

if TYPE_CHECKING:
    from npmerge.objectives.base import Apply, Objective
    from npmerge.objectives.catalogue import OBJECTIVES
    from npmerge.objectives.collapse import warn_of_collapse
    from npmerge.objectives.cross_entropy import CrossEntropy
    from npmerge.objectives.distillation import Distillation
    from npmerge.objectives.entropy import Entropy
    from npmerge.objectives.feature_matching import FeatureMatching
    from npmerge.objectives.joint import Joint
    from npmerge.objectives.labels import check_labels
    from npmerge.objectives.line import LineLoss, along_line
    from npmerge.objectives.loss_sum import LossSum, weighted_sum
    from npmerge.objectives.losses import FineTuningLoss, WeightSpaceLoss, fine_tuning, weight_space
    from npmerge.objectives.next_token import NextToken
    from npmerge.objectives.proximity import Proximity
    from npmerge.objectives.regularisers import EqualShares, TowardStart
    from npmerge.objectives.sums import Sum
    from npmerge.objectives.user import PerExample, UserObjective
    from npmerge.objectives.weight_distance import WeightDistance
else:
    make_lazy(
        __name__,
        {
            "npmerge.objectives.base": "Apply Objective",
            "npmerge.objectives.catalogue": "OBJECTIVES",
            "npmerge.objectives.collapse": "warn_of_collapse",
            "npmerge.objectives.cross_entropy": "CrossEntropy",
            "npmerge.objectives.distillation": "Distillation",
            "npmerge.objectives.entropy": "Entropy",
            "npmerge.objectives.feature_matching": "FeatureMatching",
            "npmerge.objectives.joint": "Joint",
            "npmerge.objectives.labels": "check_labels",
            "npmerge.objectives.line": "LineLoss along_line",
            "npmerge.objectives.loss_sum": "LossSum weighted_sum",
            "npmerge.objectives.losses": "FineTuningLoss WeightSpaceLoss fine_tuning weight_space",
            "npmerge.objectives.next_token": "NextToken",
            "npmerge.objectives.proximity": "Proximity",
            "npmerge.objectives.regularisers": "EqualShares TowardStart",
            "npmerge.objectives.sums": "Sum",
            "npmerge.objectives.user": "PerExample UserObjective",
            "npmerge.objectives.weight_distance": "WeightDistance",
        },
    )

__all__ = [
    "OBJECTIVES",
    "Apply",
    "CrossEntropy",
    "Distillation",
    "Entropy",
    "EqualShares",
    "FeatureMatching",
    "FineTuningLoss",
    "Joint",
    "LineLoss",
    "LossSum",
    "NextToken",
    "Objective",
    "PerExample",
    "Proximity",
    "Sum",
    "TowardStart",
    "UserObjective",
    "WeightDistance",
    "WeightSpaceLoss",
    "along_line",
    "check_labels",
    "fine_tuning",
    "warn_of_collapse",
    "weight_space",
    "weighted_sum",
]
