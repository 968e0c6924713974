"""Which unit of model B is which unit of model A: symmetry graphs, maps of units, and alignments.

`trace` reads the symmetries off any pure function, `align` brings networks into the units of the first.
"""

from typing import TYPE_CHECKING

from alignment.lazy import make_lazy

if TYPE_CHECKING:
    from alignment import primitives
    from alignment.activations.cka import MinibatchCKA, linear_cka, rbf_cka
    from alignment.activations.correlation import matched_correlation
    from alignment.activations.moments import Joint, JointMoments, Moments, NodeMoments, Statistic
    from alignment.activations.taps import Captured, SiteFeatures, capture
    from alignment.base import Alignment, align
    from alignment.budget.allocation import Allocation, allocate
    from alignment.budget.costs import Costs, costs
    from alignment.budget.gains import disagreement, measured_gains
    from alignment.folding.fold import Folded, fold
    from alignment.graph import Graph, Node, Pinned, Place, Tap
    from alignment.labels import AxisLabel, Cases, Fixed, NodeAxis, Part, Product, Segments
    from alignment.lookups import Lookup
    from alignment.maps import NodeMap, compose, general, identity, invert, orthogonal, permutation, rectangular, transport
    from alignment.methods import ALIGNMENTS
    from alignment.methods.activation_matching import ActivationMatching
    from alignment.methods.cca import CCA
    from alignment.methods.cycle_consistent import CycleConsistent
    from alignment.methods.group_matching import GroupMatching
    from alignment.methods.optimal_transport import OptimalTransport
    from alignment.methods.partial import PartialMatching
    from alignment.methods.procrustes import Procrustes
    from alignment.methods.scale import Scale
    from alignment.methods.soft_permutation import SoftPermutation, annealed
    from alignment.methods.straight_through import StraightThrough
    from alignment.methods.weight_matching import WeightMatching
    from alignment.methods.zipit import ZipIt
    from alignment.resizing.resize import Resized, resize, widths_of
    from alignment.sinkhorn import sinkhorn
    from alignment.sites import Site
    from alignment.tracing.trace import trace
    from alignment.verification import discrepancy, verify, verify_each
    from alignment.weight_distance import weight_distance
else:
    make_lazy(
        __name__,
        {
            "alignment.methods": "ALIGNMENTS",
            "alignment.methods.activation_matching": "ActivationMatching",
            "alignment.budget.allocation": "Allocation allocate",
            "alignment.base": "Alignment align",
            "alignment.methods.cca": "CCA",
            "alignment.activations.cka": "MinibatchCKA linear_cka rbf_cka",
            "alignment.activations.correlation": "matched_correlation",
            "alignment.budget.costs": "Costs costs",
            "alignment.methods.cycle_consistent": "CycleConsistent",
            "alignment.folding.fold": "Folded fold",
            "alignment.budget.gains": "disagreement measured_gains",
            "alignment.graph": "Graph Node Pinned Place Tap",
            "alignment.methods.group_matching": "GroupMatching",
            "alignment.labels": "AxisLabel Cases Fixed NodeAxis Part Product Segments",
            "alignment.lookups": "Lookup",
            "alignment.maps": "NodeMap compose general identity invert orthogonal permutation rectangular transport",
            "alignment.activations.moments": "Joint JointMoments Moments NodeMoments Statistic",
            "alignment.methods.optimal_transport": "OptimalTransport",
            "alignment.methods.partial": "PartialMatching",
            "alignment.methods.procrustes": "Procrustes",
            "alignment.resizing.resize": "Resized resize widths_of",
            "alignment.methods.scale": "Scale",
            "alignment.sinkhorn": "sinkhorn",
            "alignment.sites": "Site",
            "alignment.methods.soft_permutation": "SoftPermutation annealed",
            "alignment.methods.straight_through": "StraightThrough",
            "alignment.activations.taps": "Captured SiteFeatures capture",
            "alignment.tracing.trace": "trace",
            "alignment.verification": "discrepancy verify verify_each",
            "alignment.weight_distance": "weight_distance",
            "alignment.methods.weight_matching": "WeightMatching",
            "alignment.methods.zipit": "ZipIt",
        },
    )

__all__ = [
    "ALIGNMENTS",
    "CCA",
    "ActivationMatching",
    "Alignment",
    "Allocation",
    "AxisLabel",
    "Captured",
    "Cases",
    "Costs",
    "CycleConsistent",
    "Fixed",
    "Folded",
    "Graph",
    "GroupMatching",
    "Joint",
    "JointMoments",
    "Lookup",
    "MinibatchCKA",
    "Moments",
    "Node",
    "NodeAxis",
    "NodeMap",
    "NodeMoments",
    "OptimalTransport",
    "Part",
    "PartialMatching",
    "Pinned",
    "Place",
    "Procrustes",
    "Product",
    "Resized",
    "Scale",
    "Segments",
    "Site",
    "SiteFeatures",
    "SoftPermutation",
    "Statistic",
    "StraightThrough",
    "Tap",
    "WeightMatching",
    "ZipIt",
    "align",
    "allocate",
    "annealed",
    "capture",
    "compose",
    "costs",
    "disagreement",
    "discrepancy",
    "fold",
    "general",
    "identity",
    "invert",
    "linear_cka",
    "matched_correlation",
    "measured_gains",
    "orthogonal",
    "permutation",
    "primitives",
    "rbf_cka",
    "rectangular",
    "resize",
    "sinkhorn",
    "trace",
    "transport",
    "verify",
    "verify_each",
    "weight_distance",
    "widths_of",
]
