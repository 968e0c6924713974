"""Every kernel against the method of `npmerge.methods` that it is, whole or in blocks, whatever their order."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import ml_dtypes
import numpy as np
import pytest

import npmerge as n
from npmerge.methods.della import DropByRank
from npmerge.recipe.parameters import METHODS
from npmerge.recipe.plan import Source, Step
from npmerge.stack import Stack
from npmerge.stream import della, whole
from npmerge.stream.arrays import DTYPES
from npmerge.stream.blocks import Block, Merged
from npmerge.stream.kernels import KERNELS, kernel_of
from npmerge.transforms import Composed, Elect, Trim

NAME = "layers.3.mlp.weight"
SEED = 5
WEIGHTS = (0.5, 0.3, 0.4)
DENSITY = (0.4, 0.7, 0.55)
NAMES = {np.dtype(value).name: key for key, value in DTYPES.items()}


@dataclass
class Held:
    """A tensor in memory, read in blocks of a length, in any order."""

    step: Step
    models: list[np.ndarray]
    base: np.ndarray | None
    length: int = 2**20
    order: int = 1
    threads: int = 1

    @property
    def size(self) -> int:
        return self.models[0].size

    def blocks(self) -> list[Block]:
        return [self._block(k, k + self.length) for k in range(0, self.size, self.length)]

    def _block(self, start: int, end: int) -> Block:
        base = None if self.base is None else self.base.reshape(-1)[start:end]
        return Block(tuple(x.reshape(-1)[start:end] for x in self.models), base, start)

    def each(self, function):
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(function, self.blocks()[:: self.order]))[:: self.order]

    def whole(self) -> Block:
        return self._block(0, self.size)


def tensors(shape, dtype=np.float32, count=3, seed=0) -> tuple[list[np.ndarray], np.ndarray]:
    """Fine-tuned models that share a direction, and their base."""
    rng = np.random.default_rng(seed)
    base, shared = rng.normal(size=(2, *shape))
    models = [base + 0.3 * shared + rng.normal(0, 0.3, shape) for _ in range(count)]
    return [x.astype(dtype) for x in models], base.astype(dtype)


def step_of(method, models, base, out="F32", name=NAME, **given) -> Step:
    """With defaults of the recipes for what is not given."""
    parameters = {p.name: p.default for p in METHODS[method].parameters} | {
        k.replace("lambda_", "lambda"): v for k, v in given.items()
    }
    sources = tuple(Source(k, name) for k in range(len(models)))
    origin = None if base is None else Source(len(models), name)
    return Step(name, models[0].shape, out, "merge", sources, origin, method, parameters)


def run(held: Held, **conventions) -> Merged:
    kernel = kernel_of(held.step, seed=SEED, **conventions)
    surveyed = kernel.survey(held)
    parts = (
        held.each(lambda b: kernel.merge(b, surveyed, held.step))
        if kernel.in_blocks
        else [kernel.merge(held.whole(), surveyed, held.step)]
    )
    values, nonfinite, rounding = zip(*parts, strict=True)
    return Merged(np.concatenate(values), sum(nonfinite), max(rounding))


@dataclass(frozen=True)
class Crumbs(Composed):
    scale: float = 1.0
    weights: tuple = None

    @property
    def transforms(self):
        return (Trim(DENSITY, outliers=0.1), Elect("sum"))


@dataclass(frozen=True)
class Drops(Composed):
    scale: float = 1.0
    weights: tuple = None

    @property
    def transforms(self):
        return (DropByRank(0.5, 0.2),)


SHARES = tuple(w / sum(WEIGHTS) for w in WEIGHTS)
# what it is in memory, models, whether it has a base and whether it knows axes, and the parameters
CASES = {
    "linear": (n.WeightedAverage(WEIGHTS), 3, "", {"weight": WEIGHTS}),
    "linear_sum": (n.WeightedAverage(WEIGHTS, normalise=False), 3, "", {"weight": WEIGHTS, "normalize": False}),
    "passthrough": (n.Passthrough(1.5), 1, "", {"scale": (1.5,)}),
    "slerp": (n.Slerp(0.3), 2, "", {"t": 0.3}),
    "nuslerp": (n.NuSlerp((3, 1)), 2, "", {"weight": (3.0, 1.0)}),
    "nuslerp_base": (n.NuSlerp((3, 1), task_vectors=True), 2, "base", {"weight": (3.0, 1.0)}),
    "nuslerp_rows": (n.NuSlerp((3, 1), per_channel=True), 2, "axes", {"weight": (3.0, 1.0), "nuslerp_flatten": False}),
    "multislerp": (n.MultiSlerp(WEIGHTS), 3, "", {"weight": WEIGHTS}),
    "multislerp_base": (n.MultiSlerp(WEIGHTS, task_vectors=True), 3, "base", {"weight": WEIGHTS}),
    "karcher": (n.KarcherMean(), 3, "", {}),
    "mlerp": (n.Mlerp(WEIGHTS), 3, "", {"weight": WEIGHTS}),
    "model_stock": (n.ModelStock(), 3, "base", {}),
    "model_stock_rows": (n.ModelStock(per_channel=True), 3, "base axes", {"filter_wise": True}),
    "nearswap": (n.NearSwap(0.2), 2, "", {"t": 0.2}),
    "arcee_fusion": (n.ArceeFusion(), 2, "axes", {}),
    "task_arithmetic": (n.TaskArithmetic(0.7, WEIGHTS), 3, "base", {"weight": WEIGHTS, "lambda": 0.7}),
    "task_arithmetic_mean": (n.TaskArithmetic(0.7, SHARES), 3, "base", {"weight": WEIGHTS, "lambda": 0.7, "normalize": True}),
    "ties": (n.Ties(DENSITY, 0.7, "tensor", weights=WEIGHTS), 3, "base", {"weight": WEIGHTS, "density": DENSITY, "lambda": 0.7}),
    "ties_dense": (n.Ties(1.0, scope="tensor"), 3, "base", {"weight": (1.0, 1.0, 1.0)}),
    "ties_sum": (
        n.Ties(DENSITY, 1.0, "tensor", "sum", WEIGHTS), 3, "base", {"weight": WEIGHTS, "density": DENSITY, "normalize": False},
    ),
    "dare_linear": (n.Dare(DENSITY, 0.7, weights=WEIGHTS), 3, "base", {"weight": WEIGHTS, "density": DENSITY, "lambda": 0.7}),
    "dare_linear_plain": (
        n.Dare(DENSITY, 1.0, rescale=None, weights=WEIGHTS), 3, "base", {"weight": WEIGHTS, "density": DENSITY, "rescale": False},
    ),
    "dare_ties": (n.Dare(DENSITY, 1.0, elect=True, weights=WEIGHTS), 3, "base", {"weight": WEIGHTS, "density": DENSITY}),
    "breadcrumbs": (
        n.Breadcrumbs(DENSITY, 0.1, 1.0, weights=WEIGHTS), 3, "base", {"weight": WEIGHTS, "density": DENSITY, "gamma": 0.1},
    ),
    "breadcrumbs_ties": (Crumbs(1.0, WEIGHTS), 3, "base", {"weight": WEIGHTS, "density": DENSITY, "gamma": 0.1}),
    "della": (n.Della(1.0, weights=WEIGHTS), 3, "base", {"weight": WEIGHTS}),
    "sce": (n.Sce(), 3, "base", {}),
    "sce_half": (n.Sce(0.5), 3, "base", {"select_topk": 0.5}),
    "pcb": (n.Pcb(0.3, 0.8, "tensor"), 3, "base", {"density": 0.3, "lambda": 0.8}),
    "consensus_ta": (n.ConsensusTA(0.5, 2, 0.4), 3, "base", {"threshold": 0.5, "agreement": 2, "lambda": 0.4}),
    "iso_c": (n.IsoC(0.8), 3, "base axes", {"lambda": 0.8}),
    "iso_cts": (n.IsoCTS(0.8, 0.6), 3, "base axes", {"lambda": 0.8, "common": 0.6}),
    "tsv_m": (n.TsvM(0.8), 3, "base axes", {"lambda": 0.8}),
    "wudi": (n.Wudi(0.8), 3, "base axes", {"lambda": 0.8}),
}  # fmt: skip


def case_of(case: str, shape, dtype=np.float32, out="F32") -> tuple[Held, n.base.Merge, bool]:
    merge, count, flags, given = CASES[case]
    models, base = tensors(shape, dtype, count)
    base = base if "base" in flags else None
    method = max((m for m in METHODS if case.startswith(m)), key=len)
    return Held(step_of(method, models, base, out, **given), models, base), merge, "axes" in flags


def in_memory(held: Held, merge, axes: bool) -> np.ndarray:
    """Of the method on a stack of float32, outputs last if it knows axes."""

    def turned(x):
        return np.moveaxis(x.astype(np.float32), 0, -1) if axes else x.astype(np.float32)

    base = None if held.base is None else {NAME: turned(held.base)}
    stack = n.stack_models([{NAME: turned(x)} for x in held.models], base)
    found = np.asarray(merge(stack, key=jax.random.key(SEED))[NAME])
    return (np.moveaxis(found, -1, 0) if axes else found).reshape(-1)


def test_all_methods_are_compared():
    assert {m for m in METHODS if any(case.startswith(m) for case in CASES)} | {"della_linear"} == set(METHODS) == set(KERNELS)


@pytest.mark.parametrize("case", CASES)
def test_as_in_memory(case):
    held, merge, axes = case_of(case, (13, 29))
    found = run(held)
    expected = in_memory(held, merge, axes)
    np.testing.assert_allclose(found.values, expected, rtol=3e-6, atol=3e-6)
    assert found.values.dtype == np.float32 and found[1:] == (0, 0.0)
    held.length, held.order, held.threads = 50, -1, 2
    np.testing.assert_array_equal(run(held).values, found.values)
