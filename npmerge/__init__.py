"""Differentiable model merging in JAX: several networks in, one out, every merge a starting point that can be learned."""

from alignment import align, capture, discrepancy, resize, trace, transport, verify, verify_each
from npmerge import checkpoint
from npmerge.aligned import Aligned
from npmerge.base import LinearMerge, Merge, combine
from npmerge.batches import in_order, shuffled
from npmerge.constraints import Box, Free, Simplex
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
from npmerge.granularity import PerChannel, PerLayer, PerModel, PerParameter, PerTensor
from npmerge.learned import Learned
from npmerge.least_squares import LeastSquares, Solved
from npmerge.methods import METHODS, Average, Fisher, Slerp, TaskArithmetic
from npmerge.multi_head import Headed, MultiHead, multi_head
from npmerge.normalisation import reset_statistics
from npmerge.objectives import CrossEntropy, Distillation, Objective, WeightDistance, along_line, fine_tuning, weight_space
from npmerge.pleas import Pleas, PreparedPleas, Sized
from npmerge.repair import Repaired, repair
from npmerge.stack import Stack, stack_models
from npmerge.statistics import DiagonalFisher, JointMoments, NodeMoments, Statistic, collect
from npmerge.version import __version__

__all__ = [
    "METHODS",
    "Aligned",
    "Average",
    "Barrier",
    "Box",
    "CrossEntropy",
    "DiagonalFisher",
    "Distillation",
    "Fisher",
    "FitResult",
    "Free",
    "Headed",
    "History",
    "JointMoments",
    "Learned",
    "LeastSquares",
    "LinearMerge",
    "LogitEnsemble",
    "Merge",
    "Metrics",
    "MultiHead",
    "NodeMoments",
    "Objective",
    "Path",
    "PerChannel",
    "PerLayer",
    "PerModel",
    "PerParameter",
    "PerTensor",
    "Pleas",
    "PreparedPleas",
    "Repaired",
    "Simplex",
    "Sized",
    "Slerp",
    "Solved",
    "Stack",
    "Statistic",
    "TaskArithmetic",
    "WeightDistance",
    "__version__",
    "align",
    "along_line",
    "barrier",
    "barrier_figure",
    "capture",
    "checkpoint",
    "collect",
    "combine",
    "correlation_figure",
    "discrepancy",
    "evaluate",
    "fine_tuning",
    "fit",
    "flops",
    "graph_figure",
    "in_order",
    "multi_head",
    "parameters",
    "path_between",
    "repair",
    "reset_statistics",
    "resetting",
    "resize",
    "shuffled",
    "stack_models",
    "trace",
    "transport",
    "verify",
    "verify_each",
    "weight_space",
]
