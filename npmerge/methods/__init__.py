"""Published merge methods, one a file. To add one: write the file, add it to METHODS; the contract tests cover it."""

from npmerge.base import Merge
from npmerge.methods.arcee_fusion import ArceeFusion
from npmerge.methods.average import Average
from npmerge.methods.breadcrumbs import Breadcrumbs
from npmerge.methods.chain_of_merges import ChainOfMerges
from npmerge.methods.consensus_ta import ConsensusTA
from npmerge.methods.dare import Dare
from npmerge.methods.della import Della
from npmerge.methods.emr import Emr
from npmerge.methods.fisher import Fisher
from npmerge.methods.greedy_soup import GreedySoup
from npmerge.methods.iso_c import IsoC
from npmerge.methods.iso_cts import IsoCTS
from npmerge.methods.karcher_mean import KarcherMean
from npmerge.methods.mats import MaTS
from npmerge.methods.mlerp import Mlerp
from npmerge.methods.model_stock import ModelStock
from npmerge.methods.multi_slerp import MultiSlerp
from npmerge.methods.near_swap import NearSwap
from npmerge.methods.nu_slerp import NuSlerp
from npmerge.methods.passthrough import Passthrough
from npmerge.methods.pcb import Pcb
from npmerge.methods.reg_mean import RegMean
from npmerge.methods.reg_mean_plus_plus import RegMeanPlusPlus
from npmerge.methods.sce import Sce
from npmerge.methods.slerp import Slerp
from npmerge.methods.tall_masks import TallMasks
from npmerge.methods.task_arithmetic import TaskArithmetic
from npmerge.methods.ties import Ties
from npmerge.methods.tsv_m import TsvM
from npmerge.methods.weighted_average import WeightedAverage
from npmerge.methods.wudi import Wudi

METHODS: tuple[type[Merge], ...] = (  # averages; on spheres; of transformed task vectors; of their spectra; by the entry
    Average, WeightedAverage, GreedySoup, TaskArithmetic, Fisher, MaTS, RegMean, RegMeanPlusPlus, ChainOfMerges, ModelStock,
    Slerp, NuSlerp, KarcherMean, MultiSlerp, Mlerp,
    Ties, Dare, Breadcrumbs, Della, Sce, Pcb, ConsensusTA, TallMasks, Emr,
    IsoC, IsoCTS, TsvM, Wudi,
    NearSwap, ArceeFusion, Passthrough,
)  # fmt: skip

__all__ = [
    "METHODS",
    "ArceeFusion",
    "Average",
    "Breadcrumbs",
    "ChainOfMerges",
    "ConsensusTA",
    "Dare",
    "Della",
    "Emr",
    "Fisher",
    "GreedySoup",
    "IsoC",
    "IsoCTS",
    "KarcherMean",
    "MaTS",
    "Mlerp",
    "ModelStock",
    "MultiSlerp",
    "NearSwap",
    "NuSlerp",
    "Passthrough",
    "Pcb",
    "RegMean",
    "RegMeanPlusPlus",
    "Sce",
    "Slerp",
    "TallMasks",
    "TaskArithmetic",
    "Ties",
    "TsvM",
    "WeightedAverage",
    "Wudi",
]
