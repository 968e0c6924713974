"""Which unit of model B is which unit of model A: symmetry graphs, maps of units, and alignments.

`trace` reads the symmetries off any pure function, `align` brings networks into the units of the first.
"""

from typing import TYPE_CHECKING

from alignment.lazy import make_lazy

if TYPE_CHECKING:
    from alignment import primitives
    from alignment.activation_matching import ActivationMatching
    from alignment.alignments import ALIGNMENTS
    from alignment.allocation import Allocation, allocate
    from alignment.base import Alignment, align
    from alignment.cca import CCA
    from alignment.cka import MinibatchCKA, linear_cka, rbf_cka
    from alignment.correlation import matched_correlation
    from alignment.costs import Costs, costs
    from alignment.cycle_consistent import CycleConsistent
    from alignment.folding import Folded, fold
    from alignment.gains import disagreement, measured_gains
    from alignment.graph import Graph, Node, Pinned, Place, Tap
    from alignment.group_matching import GroupMatching
    from alignment.labels import AxisLabel, Cases, Fixed, NodeAxis, Part, Product, Segments
    from alignment.lookups import Lookup
    from alignment.maps import (
        NodeMap,
        compose,
        discrepancy,
        general,
        identity,
        invert,
        orthogonal,
        permutation,
        rectangular,
        transport,
        verify,
        verify_each,
    )
    from alignment.moments import Joint, JointMoments, Moments, NodeMoments, Statistic
    from alignment.optimal_transport import OptimalTransport
    from alignment.partial import PartialMatching
    from alignment.procrustes import Procrustes
    from alignment.resizing import Resized, resize, widths_of
    from alignment.scale import Scale
    from alignment.sinkhorn import sinkhorn
    from alignment.sites import Site
    from alignment.soft_permutation import SoftPermutation, annealed
    from alignment.straight_through import StraightThrough
    from alignment.taps import Captured, SiteFeatures, capture
    from alignment.trace import trace
    from alignment.weight_distance import weight_distance
    from alignment.weight_matching import WeightMatching
    from alignment.zipit import ZipIt
else:
    make_lazy(
        __name__,
        {
            "alignment.alignments": "ALIGNMENTS",
            "alignment.activation_matching": "ActivationMatching",
            "alignment.allocation": "Allocation allocate",
            "alignment.base": "Alignment align",
            "alignment.cca": "CCA",
            "alignment.cka": "MinibatchCKA linear_cka rbf_cka",
            "alignment.correlation": "matched_correlation",
            "alignment.costs": "Costs costs",
            "alignment.cycle_consistent": "CycleConsistent",
            "alignment.folding": "Folded fold",
            "alignment.gains": "disagreement measured_gains",
            "alignment.graph": "Graph Node Pinned Place Tap",
            "alignment.group_matching": "GroupMatching",
            "alignment.labels": "AxisLabel Cases Fixed NodeAxis Part Product Segments",
            "alignment.lookups": "Lookup",
            "alignment.maps": (
                "NodeMap compose discrepancy general identity invert orthogonal permutation rectangular transport verify "
                "verify_each"
            ),
            "alignment.moments": "Joint JointMoments Moments NodeMoments Statistic",
            "alignment.optimal_transport": "OptimalTransport",
            "alignment.partial": "PartialMatching",
            "alignment.procrustes": "Procrustes",
            "alignment.resizing": "Resized resize widths_of",
            "alignment.scale": "Scale",
            "alignment.sinkhorn": "sinkhorn",
            "alignment.sites": "Site",
            "alignment.soft_permutation": "SoftPermutation annealed",
            "alignment.straight_through": "StraightThrough",
            "alignment.taps": "Captured SiteFeatures capture",
            "alignment.trace": "trace",
            "alignment.weight_distance": "weight_distance",
            "alignment.weight_matching": "WeightMatching",
            "alignment.zipit": "ZipIt",
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
