"""Which kernel a step takes: the arithmetic of every method that recipes name."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from alignment.checks import unknown
from alignment.names import is_statistic
from npmerge.methods.arcee_fusion import ArceeFusion
from npmerge.methods.iso_c import IsoC
from npmerge.methods.iso_cts import IsoCTS
from npmerge.methods.karcher_mean import KarcherMean
from npmerge.methods.mlerp import Mlerp
from npmerge.methods.model_stock import ModelStock
from npmerge.methods.nu_slerp import NuSlerp
from npmerge.methods.pcb import Pcb
from npmerge.methods.slerp import Slerp
from npmerge.methods.tsv_m import TsvM
from npmerge.methods.wudi import Wudi
from npmerge.recipe.plan import Step
from npmerge.stream.blocks import Kernel
from npmerge.stream.combinations import Constant, FromGram
from npmerge.stream.della import Della
from npmerge.stream.elementwise import Elementwise, consensus, mean, near_swap
from npmerge.stream.mergekit_methods import BarycentricSlerp, FewStepsToKarcherMean, UnboundedModelStock
from npmerge.stream.sce import Sce
from npmerge.stream.task_vectors import TaskVectors, Trimmed, fused, number, per_model
from npmerge.stream.whole import Whole
from npmerge.task_vectors.spectral import Spectral
from npmerge.weights import vanishes


class Conventions(NamedTuple):
    """What is shared by all steps of a plan.

    Attributes:
        mergekit: whether mergekit's conventions are followed where ours differ.
        seed: of masks that are drawn.
    """

    mergekit: bool
    seed: int


Maker = Callable[[Step, Conventions], Kernel]
"""Makes the kernel of a step."""


def kernel_of(step: Step, *, mergekit_semantics: bool = False, seed: int = 0) -> Kernel:
    """The kernel of one tensor: its method, its parameters and its name decide.

    Running statistics, and tensors without entries, are averaged whatever the method; statistics not under mergekit's
    conventions.

    Args:
        step: of which every parameter of the method is given.
        mergekit_semantics: mergekit's conventions where ours differ.
        seed: of masks that are drawn.

    Raises:
        ValueError: a method that is not known, or parameters that it does not take.
    """
    if step.method not in KERNELS:
        raise ValueError(unknown("method", step.method, KERNELS))
    averaged = is_statistic(step.name.replace(".", "/")) and not mergekit_semantics
    if averaged or 0 in step.shape:
        return Elementwise(mean)
    return KERNELS[step.method](step, Conventions(mergekit_semantics, seed))


def _weights(step: Step) -> tuple[float, ...]:
    return tuple(per_model(step, "weight").tolist())


def _linear(step: Step, conventions: Conventions) -> Kernel:
    weights = per_model(step, "weight")
    if not step.parameters["normalize"]:
        return Constant(weights)
    if vanishes(weights):
        raise ValueError(f"linear needs weights whose sum is not zero for {step.name!r}, got {weights.tolist()}")
    return Constant(weights / weights.sum())


def _task_arithmetic(step: Step, conventions: Conventions) -> Kernel:
    weights = per_model(step, "weight")
    return Constant(fused(weights, step, elect=False)[1] * weights)


def _passthrough(step: Step, conventions: Conventions) -> Kernel:
    return Constant(per_model(step, "scale"))


def _slerp(step: Step, conventions: Conventions) -> Kernel:
    t = number(step, "t")
    return FromGram(Slerp(t), if_opposite=(1 - t, t) if conventions.mergekit else None)


def _nuslerp(step: Step, conventions: Conventions) -> Kernel:
    weights = _weights(step)
    if conventions.mergekit and abs(sum(weights)) < 1e-6:
        weights = (0.5, 0.5)
    by_tensor, by_input = step.parameters["nuslerp_flatten"], step.parameters["nuslerp_row_wise"]
    method = NuSlerp(weights, task_vectors=step.base is not None, per_channel=not by_tensor)
    if not by_tensor:
        return Whole(method, output=-1 if by_input else 0)
    whole = sum(weights)
    return FromGram(method, if_opposite=(weights[0] / whole, weights[1] / whole) if conventions.mergekit else None)


def _multislerp(step: Step, conventions: Conventions) -> Kernel:
    weights = np.array(_weights(step))
    if len(weights) == 1:
        return Constant((1.0,))
    if step.parameters["normalize_weights"]:
        if vanishes(weights):
            raise ValueError(f"multislerp needs weights whose sum is not zero for {step.name!r}, got {weights.tolist()}")
        weights = weights / weights.sum()
    shares = tuple(weights.tolist())
    eps = number(step, "eps") if conventions.mergekit else 0.0
    return FromGram(BarycentricSlerp(shares, eps), if_opposite=shares if conventions.mergekit and len(shares) == 2 else None)


def _karcher(step: Step, conventions: Conventions) -> Kernel:
    if not conventions.mergekit:
        return FromGram(KarcherMean())
    return FromGram(FewStepsToKarcherMean(int(number(step, "max_iter")), number(step, "tol")))


def _mlerp(step: Step, conventions: Conventions) -> Kernel:
    return FromGram(Mlerp(_weights(step)))


def _model_stock(step: Step, conventions: Conventions) -> Kernel:
    by_row = bool(step.parameters["filter_wise"])
    method = (UnboundedModelStock if conventions.mergekit else ModelStock)(by_row)
    return Whole(method) if by_row else FromGram(method)


def _near_swap(step: Step, conventions: Conventions) -> Kernel:
    t = number(step, "t")
    return Elementwise(near_swap, (t, 1e-6 if conventions.mergekit else max(t, 1e-30)))


def _consensus_ta(step: Step, conventions: Conventions) -> Kernel:
    return Elementwise(consensus, tuple(number(step, name) for name in ("threshold", "agreement", "lambda")))


def _pcb(step: Step, conventions: Conventions) -> Kernel:
    return Whole(Pcb(number(step, "density"), number(step, "lambda"), scope="tensor"))


def _sce(step: Step, conventions: Conventions) -> Kernel:
    return Sce(conventions.mergekit)


def _spectral(method: type[Spectral], *fields: str) -> Maker:
    def kernel(step: Step, conventions: Conventions) -> Kernel:
        return Whole(method(**{name: number(step, name) for name in fields}), number(step, "lambda"))

    return kernel


def _task_vectors(trim: Trimmed = None, *, drop: bool = False, elect: bool = False) -> Maker:
    return lambda step, conventions: TaskVectors(trim, drop, elect, *conventions)


def _della(*, elect: bool) -> Maker:
    return lambda step, conventions: Della(elect, *conventions)


KERNELS: dict[str, Maker] = {
    "linear": _linear,
    "passthrough": _passthrough,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "multislerp": _multislerp,
    "karcher": _karcher,
    "mlerp": _mlerp,
    "model_stock": _model_stock,
    "nearswap": _near_swap,
    "arcee_fusion": lambda step, conventions: Whole(ArceeFusion()),
    "task_arithmetic": _task_arithmetic,
    "ties": _task_vectors("largest", elect=True),
    "dare_linear": _task_vectors(drop=True),
    "dare_ties": _task_vectors(drop=True, elect=True),
    "breadcrumbs": _task_vectors("middle"),
    "breadcrumbs_ties": _task_vectors("middle", elect=True),
    "della": _della(elect=True),
    "della_linear": _della(elect=False),
    "sce": _sce,
    "pcb": _pcb,
    "consensus_ta": _consensus_ta,
    "iso_c": _spectral(IsoC),
    "iso_cts": _spectral(IsoCTS, "common"),
    "tsv_m": _spectral(TsvM),
    "wudi": _spectral(Wudi),
}
"""By the name that recipes have for a method."""
