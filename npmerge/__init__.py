"""Differentiable model merging in JAX: several networks in, one out, every merge a starting point that can be learned."""

from typing import TYPE_CHECKING

from alignment.lazy import make_lazy
from npmerge.version import __version__

if TYPE_CHECKING:
    from alignment import align, capture, discrepancy, resize, trace, transport, verify, verify_each
    from npmerge import checkpoint, cost
    from npmerge.aligned import Aligned
    from npmerge.base import LinearMerge, Merge, combine
    from npmerge.batches import in_order, shuffled
    from npmerge.constraints import Box, Clip, Free, Simplex
    from npmerge.evaluate import (
        Barrier,
        LogitEnsemble,
        Metrics,
        Path,
        barrier,
        evaluate,
        flops,
        parameters,
        path_between,
        resetting,
    )
    from npmerge.figures import barrier_figure, correlation_figure, graph_figure
    from npmerge.fit import FitResult, History, fit
    from npmerge.granularity import PerChannel, PerInput, PerLayer, PerModel, PerParameter, PerTensor
    from npmerge.learned import Learned
    from npmerge.least_squares import LeastSquares, Solved
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
    from npmerge.multi_head import Headed, MultiHead, multi_head
    from npmerge.normalisation import reset_statistics
    from npmerge.objectives import (
        CrossEntropy,
        Distillation,
        Entropy,
        Objective,
        WeightDistance,
        along_line,
        fine_tuning,
        weight_space,
    )
    from npmerge.per_task import PerTask, TaskNetworks
    from npmerge.pleas import Pleas, PreparedPleas, Sized
    from npmerge.published import ada_merging, dam, np_merge
    from npmerge.repair import Repaired, repair
    from npmerge.stack import Stack, stack_models
    from npmerge.statistics import (
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
    from npmerge.statistics_files import load_statistics, save_statistics
    from npmerge.successive import Successive, successive
    from npmerge.transforms import Composed
else:
    make_lazy(
        __name__,
        {
            "alignment": "align capture discrepancy resize trace transport verify verify_each",
            "npmerge.aligned": "Aligned",
            "npmerge.base": "LinearMerge Merge combine",
            "npmerge.batches": "in_order shuffled",
            "npmerge.constraints": "Box Clip Free Simplex",
            "npmerge.evaluate": "Barrier LogitEnsemble Metrics Path barrier evaluate flops parameters path_between resetting",
            "npmerge.figures": "barrier_figure correlation_figure graph_figure",
            "npmerge.fit": "FitResult History fit",
            "npmerge.granularity": "PerChannel PerInput PerLayer PerModel PerParameter PerTensor",
            "npmerge.learned": "Learned",
            "npmerge.least_squares": "LeastSquares Solved",
            "npmerge.methods": (
                "METHODS ArceeFusion Average Breadcrumbs ChainOfMerges ConsensusTA Dare Della Emr Fisher GreedySoup IsoC "
                "IsoCTS KarcherMean MaTS Mlerp ModelStock MultiSlerp NearSwap NuSlerp Passthrough Pcb RegMean "
                "RegMeanPlusPlus Sce Slerp TallMasks TaskArithmetic Ties TsvM WeightedAverage Wudi"
            ),
            "npmerge.multi_head": "Headed MultiHead multi_head",
            "npmerge.normalisation": "reset_statistics",
            "npmerge.objectives": (
                "CrossEntropy Distillation Entropy Objective WeightDistance along_line fine_tuning weight_space"
            ),
            "npmerge.per_task": "PerTask TaskNetworks",
            "npmerge.pleas": "Pleas PreparedPleas Sized",
            "npmerge.published": "ada_merging dam np_merge",
            "npmerge.repair": "Repaired repair",
            "npmerge.stack": "Stack stack_models",
            "npmerge.statistics": (
                "DiagonalFisher Examples InputGram JointMoments KroneckerFactors NodeMoments Statistic collect collect_each"
            ),
            "npmerge.statistics_files": "load_statistics save_statistics",
            "npmerge.successive": "Successive successive",
            "npmerge.transforms": "Composed",
        },
    )

__all__ = [
    "METHODS",
    "Aligned",
    "ArceeFusion",
    "Average",
    "Barrier",
    "Box",
    "Breadcrumbs",
    "ChainOfMerges",
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
    "Examples",
    "Fisher",
    "FitResult",
    "Free",
    "GreedySoup",
    "Headed",
    "History",
    "InputGram",
    "IsoC",
    "IsoCTS",
    "JointMoments",
    "KarcherMean",
    "KroneckerFactors",
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
    "NodeMoments",
    "NuSlerp",
    "Objective",
    "Passthrough",
    "Path",
    "Pcb",
    "PerChannel",
    "PerInput",
    "PerLayer",
    "PerModel",
    "PerParameter",
    "PerTask",
    "PerTensor",
    "Pleas",
    "PreparedPleas",
    "RegMean",
    "RegMeanPlusPlus",
    "Repaired",
    "Sce",
    "Simplex",
    "Sized",
    "Slerp",
    "Solved",
    "Stack",
    "Statistic",
    "Successive",
    "TallMasks",
    "TaskArithmetic",
    "TaskNetworks",
    "Ties",
    "TsvM",
    "WeightDistance",
    "WeightedAverage",
    "Wudi",
    "__version__",
    "ada_merging",
    "align",
    "along_line",
    "barrier",
    "barrier_figure",
    "capture",
    "checkpoint",
    "collect",
    "collect_each",
    "combine",
    "correlation_figure",
    "cost",
    "dam",
    "discrepancy",
    "evaluate",
    "fine_tuning",
    "fit",
    "flops",
    "graph_figure",
    "in_order",
    "load_statistics",
    "multi_head",
    "np_merge",
    "parameters",
    "path_between",
    "repair",
    "reset_statistics",
    "resetting",
    "resize",
    "save_statistics",
    "shuffled",
    "stack_models",
    "successive",
    "trace",
    "transport",
    "verify",
    "verify_each",
    "weight_space",
]
