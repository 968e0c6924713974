"""Differentiable model merging in JAX: several networks in, one out, every merge a starting point that can be learned.

In the examples of docstrings `nm` is npmerge, and alignment, jax, jnp (jax.numpy), np (numpy) and optax are imported.
"""

from typing import TYPE_CHECKING

from alignment.lazy import make_lazy
from npmerge.version import __version__

if TYPE_CHECKING:
    from alignment import align, capture, discrepancy, resize, trace, transport, verify, verify_each
    from npmerge import checkpoint, cost
    from npmerge.aligned import Aligned
    from npmerge.base import Merge
    from npmerge.batches import in_order, shuffled
    from npmerge.constraints import Box, Clip, Free, Simplex
    from npmerge.evaluate import LogitEnsemble, Metrics, evaluate, flops, parameters
    from npmerge.fitting.fit import Checkpoints, FitResult, History, fit
    from npmerge.fitting.many import FittedMany, fit_many
    from npmerge.fitting.plateau import Advice, Plateau
    from npmerge.fitting.precision import mixed_precision, remat
    from npmerge.fitting.successive import Successive, successive
    from npmerge.granularity import PerChannel, PerInput, PerLayer, PerModel, PerParameter, PerTensor
    from npmerge.heads.functions import MultiHead
    from npmerge.heads.multi_head import Headed, multi_head
    from npmerge.layer_groups.fit_layerwise import GroupFit, Layerwise, fit_layerwise
    from npmerge.learned import Learned
    from npmerge.least_squares.pleas import Pleas, PreparedPleas, Sized
    from npmerge.least_squares.solve import LeastSquares, Solved
    from npmerge.linear import LinearMerge, combine
    from npmerge.loading import by_task, columns, prefetched
    from npmerge.methods import (
        METHODS,
        ArceeFusion,
        Average,
        Breadcrumbs,
        ChainOfMerges,
        ConsensusTA,
        Dare,
        Della,
        Emr,
        Fisher,
        GreedySoup,
        IsoC,
        IsoCTS,
        KarcherMean,
        MaTS,
        Mlerp,
        ModelStock,
        MultiSlerp,
        NearSwap,
        NuSlerp,
        Passthrough,
        Pcb,
        RegMean,
        RegMeanPlusPlus,
        Sce,
        Slerp,
        TallMasks,
        TaskArithmetic,
        Ties,
        TsvM,
        WeightedAverage,
        Wudi,
    )
    from npmerge.normalisation import reset_statistics
    from npmerge.objectives import (
        OBJECTIVES,
        CrossEntropy,
        Distillation,
        Entropy,
        EqualShares,
        FeatureMatching,
        Joint,
        NextToken,
        Objective,
        PerExample,
        Proximity,
        Sum,
        TowardStart,
        UserObjective,
        WeightDistance,
        along_line,
        fine_tuning,
        warn_of_collapse,
        weight_space,
        weighted_sum,
    )
    from npmerge.paths import Barrier, Path, barrier, path_between, resetting
    from npmerge.published import ada_merging, dam, np_merge
    from npmerge.repair import Repaired, repair
    from npmerge.reports.figures import barrier_figure, correlation_figure, graph_figure
    from npmerge.reports.routing import routing_figure
    from npmerge.routing.network import RoutedNetwork
    from npmerge.routing.route import Routed, route
    from npmerge.routing.routers import FeatureAveraging, Router
    from npmerge.routing.usage import RoutingUsage
    from npmerge.stack import Stack, stack_models
    from npmerge.statistics.collect import (
        DiagonalFisher,
        Examples,
        InputGram,
        JointMoments,
        KroneckerFactors,
        NodeMoments,
        Statistic,
        collect,
        collect_each,
    )
    from npmerge.statistics.files import load_statistics, save_statistics
    from npmerge.task_vectors.composed import Composed
    from npmerge.task_vectors.per_task import PerTask, TaskNetworks
else:
    make_lazy(
        __name__,
        {
            "alignment": "align capture discrepancy resize trace transport verify verify_each",
            "npmerge.aligned": "Aligned",
            "npmerge.base": "Merge",
            "npmerge.batches": "in_order shuffled",
            "npmerge.constraints": "Box Clip Free Simplex",
            "npmerge.evaluate": "LogitEnsemble Metrics evaluate flops parameters",
            "npmerge.paths": "Barrier Path barrier path_between resetting",
            "npmerge.reports.figures": "barrier_figure correlation_figure graph_figure",
            "npmerge.fitting.fit": "Checkpoints FitResult History fit",
            "npmerge.fitting.many": "FittedMany fit_many",
            "npmerge.fitting.plateau": "Advice Plateau",
            "npmerge.layer_groups.fit_layerwise": "GroupFit Layerwise fit_layerwise",
            "npmerge.granularity": "PerChannel PerInput PerLayer PerModel PerParameter PerTensor",
            "npmerge.learned": "Learned",
            "npmerge.least_squares.solve": "LeastSquares Solved",
            "npmerge.linear": "LinearMerge combine",
            "npmerge.loading": "by_task columns prefetched",
            "npmerge.methods": (
                "METHODS ArceeFusion Average Breadcrumbs ChainOfMerges ConsensusTA Dare Della Emr Fisher GreedySoup IsoC "
                "IsoCTS KarcherMean MaTS Mlerp ModelStock MultiSlerp NearSwap NuSlerp Passthrough Pcb RegMean "
                "RegMeanPlusPlus Sce Slerp TallMasks TaskArithmetic Ties TsvM WeightedAverage Wudi"
            ),
            "npmerge.heads.functions": "MultiHead",
            "npmerge.heads.multi_head": "Headed multi_head",
            "npmerge.normalisation": "reset_statistics",
            "npmerge.objectives": (
                "OBJECTIVES CrossEntropy Distillation Entropy EqualShares FeatureMatching Joint NextToken Objective PerExample "
                "Proximity Sum TowardStart UserObjective WeightDistance along_line fine_tuning warn_of_collapse weight_space "
                "weighted_sum"
            ),
            "npmerge.task_vectors.per_task": "PerTask TaskNetworks",
            "npmerge.least_squares.pleas": "Pleas PreparedPleas Sized",
            "npmerge.fitting.precision": "mixed_precision remat",
            "npmerge.published": "ada_merging dam np_merge",
            "npmerge.repair": "Repaired repair",
            "npmerge.reports.routing": "routing_figure",
            "npmerge.routing.network": "RoutedNetwork",
            "npmerge.routing.route": "Routed route",
            "npmerge.routing.routers": "FeatureAveraging Router",
            "npmerge.routing.usage": "RoutingUsage",
            "npmerge.stack": "Stack stack_models",
            "npmerge.statistics.collect": (
                "DiagonalFisher Examples InputGram JointMoments KroneckerFactors NodeMoments Statistic collect collect_each"
            ),
            "npmerge.statistics.files": "load_statistics save_statistics",
            "npmerge.fitting.successive": "Successive successive",
            "npmerge.task_vectors.composed": "Composed",
        },
    )

__all__ = [
    "METHODS",
    "OBJECTIVES",
    "Advice",
    "Aligned",
    "ArceeFusion",
    "Average",
    "Barrier",
    "Box",
    "Breadcrumbs",
    "ChainOfMerges",
    "Checkpoints",
    "Clip",
    "Composed",
    "ConsensusTA",
    "CrossEntropy",
    "Dare",
    "Della",
    "DiagonalFisher",
    "Distillation",
    "Emr",
    "Entropy",
    "EqualShares",
    "Examples",
    "FeatureAveraging",
    "FeatureMatching",
    "Fisher",
    "FitResult",
    "FittedMany",
    "Free",
    "GreedySoup",
    "GroupFit",
    "Headed",
    "History",
    "InputGram",
    "IsoC",
    "IsoCTS",
    "Joint",
    "JointMoments",
    "KarcherMean",
    "KroneckerFactors",
    "Layerwise",
    "Learned",
    "LeastSquares",
    "LinearMerge",
    "LogitEnsemble",
    "MaTS",
    "Merge",
    "Metrics",
    "Mlerp",
    "ModelStock",
    "MultiHead",
    "MultiSlerp",
    "NearSwap",
    "NextToken",
    "NodeMoments",
    "NuSlerp",
    "Objective",
    "Passthrough",
    "Path",
    "Pcb",
    "PerChannel",
    "PerExample",
    "PerInput",
    "PerLayer",
    "PerModel",
    "PerParameter",
    "PerTask",
    "PerTensor",
    "Plateau",
    "Pleas",
    "PreparedPleas",
    "Proximity",
    "RegMean",
    "RegMeanPlusPlus",
    "Repaired",
    "Routed",
    "RoutedNetwork",
    "Router",
    "RoutingUsage",
    "Sce",
    "Simplex",
    "Sized",
    "Slerp",
    "Solved",
    "Stack",
    "Statistic",
    "Successive",
    "Sum",
    "TallMasks",
    "TaskArithmetic",
    "TaskNetworks",
    "Ties",
    "TowardStart",
    "TsvM",
    "UserObjective",
    "WeightDistance",
    "WeightedAverage",
    "Wudi",
    "__version__",
    "ada_merging",
    "align",
    "along_line",
    "barrier",
    "barrier_figure",
    "by_task",
    "capture",
    "checkpoint",
    "collect",
    "collect_each",
    "columns",
    "combine",
    "correlation_figure",
    "cost",
    "dam",
    "discrepancy",
    "evaluate",
    "fine_tuning",
    "fit",
    "fit_layerwise",
    "fit_many",
    "flops",
    "graph_figure",
    "in_order",
    "load_statistics",
    "mixed_precision",
    "multi_head",
    "np_merge",
    "parameters",
    "path_between",
    "prefetched",
    "remat",
    "repair",
    "reset_statistics",
    "resetting",
    "resize",
    "route",
    "routing_figure",
    "save_statistics",
    "shuffled",
    "stack_models",
    "successive",
    "trace",
    "transport",
    "verify",
    "verify_each",
    "warn_of_collapse",
    "weight_space",
    "weighted_sum",
]
