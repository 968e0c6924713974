"""Every kernel against the method of `npmerge.methods` that it is, whole or in blocks, whatever their order."""

import dataclasses
import math
from dataclasses import dataclass

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

import npmerge as n
from npmerge.base import Merge
from npmerge.recipe.parameters import METHODS
from npmerge.stream import della, masks, selection_in_blocks, task_vectors
from npmerge.stream.kernels import KERNELS, kernel_of
from npmerge.stream.selection_in_blocks import cuts, magnitudes, select
from npmerge.task_vectors.composed import Composed
from npmerge.task_vectors.elections import Elect
from npmerge.task_vectors.transforms import Trim, draw
from tests.npmerge.stream.held import NAME, SEED, Held, run, step_of, tensors

WEIGHTS = (0.5, 0.3, 0.4)
DENSITY = (0.4, 0.7, 0.55)


@dataclass(frozen=True)
class Crumbs(Composed):
    scale: float = 1.0
    weights: tuple = None

    @property
    def transforms(self):
        return (Trim(DENSITY, outliers=0.1), Elect("sum"))


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
    "ties": (
        n.Ties(DENSITY, 0.7, "tensor", weights=WEIGHTS), 3, "base", {"weight": WEIGHTS, "density": DENSITY, "lambda": 0.7},
    ),
    "ties_dense": (n.Ties(1.0, scope="tensor"), 3, "base", {"weight": (1.0, 1.0, 1.0)}),
    "ties_sum": (
        n.Ties(DENSITY, 1.0, "tensor", "sum", WEIGHTS), 3, "base", {"weight": WEIGHTS, "density": DENSITY, "normalize": False},
    ),
    "dare_linear": (n.Dare(DENSITY, 0.7, weights=WEIGHTS), 3, "base", {"weight": WEIGHTS, "density": DENSITY, "lambda": 0.7}),
    "dare_linear_plain": (
        n.Dare(DENSITY, 1.0, rescale=None, weights=WEIGHTS), 3, "base",
        {"weight": WEIGHTS, "density": DENSITY, "rescale": False},
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


def case_of(case: str, shape, dtype=np.float32, out="F32") -> tuple[Held, Merge, bool]:
    merge, count, flags, given = CASES[case]
    models, base = tensors(shape, dtype, count)
    base = base if "base" in flags else None
    method = max((m for m in METHODS if case.startswith(m)), key=len)
    return Held(step_of(method, models, base, out, **given), models, base), merge, "axes" in flags


def in_memory(held: Held, merge: Merge, axes: bool = False) -> np.ndarray:
    """Of the method on a stack of float32, outputs last if it knows axes."""

    def turned(x):
        return np.moveaxis(x.astype(np.float32), 0, -1) if axes else x.astype(np.float32)

    base = None if held.base is None else {NAME: turned(held.base)}
    stack = n.stack_models([{NAME: turned(x)} for x in held.models], base)
    found = np.asarray(merge(stack, key=jax.random.key(SEED))[NAME])
    return (np.moveaxis(found, -1, 0) if axes else found).reshape(-1)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=3e-6, atol=3e-6)


def test_all_methods_are_compared():
    assert {m for m in METHODS if any(case.startswith(m) for case in CASES)} | {"della_linear"} == set(METHODS) == set(KERNELS)


@pytest.mark.parametrize("case", CASES)
def test_as_in_memory(case):
    held, merge, axes = case_of(case, (13, 29))
    found = run(held)
    close(found.values, in_memory(held, merge, axes))
    assert found.values.dtype == np.float32 and found[1:] == (0, 0.0)
    held.length = 50
    cut = run(held).values
    close(cut, found.values)
    held.order, held.threads = -1, 2
    np.testing.assert_array_equal(run(held).values, cut)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("linear", np.float16),
        ("slerp", np.float64),
        ("ties", ml_dtypes.bfloat16),
        ("dare_ties", np.float64),
        ("sce_half", np.float64),
        ("iso_c", ml_dtypes.bfloat16),
    ],
)
def test_rounded_once_whatever_the_dtype(case, dtype):
    held, merge, axes = case_of(case, (3, 5), dtype)
    wide = run(held).values
    if dtype != np.float64:
        close(wide, in_memory(held, merge, axes))
    for out in ("BF16", "F16", "F8_E4M3"):
        held.step = dataclasses.replace(held.step, dtype=out)
        values, nonfinite, rounding = run(held)
        assert nonfinite == 0
        np.testing.assert_array_equal(values, wide.astype(values.dtype))
        np.testing.assert_allclose(rounding, np.abs(values.astype(np.float32) - wide).max(), atol=5e-7)  # of 1e-4 and more


@pytest.mark.parametrize("last", [ml_dtypes.float8_e4m3fn, np.float64])
@pytest.mark.parametrize("case", ["task_arithmetic", "slerp", "ties", "iso_c"])
def test_models_of_several_dtypes(case, last):
    held, merge, axes = case_of(case, (4, 6))
    held.models = [x.astype(d) for x, d in zip(held.models, (ml_dtypes.bfloat16, last, np.float32), strict=False)]
    close(run(held).values, in_memory(held, merge, axes))


def test_double_precision_stays():
    models, base = tensors((7,), np.float64)
    found = run(Held(step_of("task_arithmetic", models, base, "F64", weight=(0.25, 0.5, -1.0)), models, base)).values
    expected = base + sum(w * (x - base) for w, x in zip((0.25, 0.5, -1.0), models, strict=True))
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize("case", ["ties", "breadcrumbs", "breadcrumbs_ties", "ties_sum"])
def test_of_equal_magnitudes_the_first(case):
    """Task vectors of five values, zeros among them."""
    held, merge, _ = case_of(case, (41, 13))
    rng = np.random.default_rng(1)
    held.base = np.round(held.base)
    held.models = [held.base + rng.integers(-2, 3, held.base.shape).astype(np.float32) for _ in held.models]
    held.length = 64
    close(run(held).values, in_memory(held, merge))


@pytest.mark.parametrize("run", [selection_in_blocks.RUN, 1000])  # a block in one run, and in several
def test_numbers_of_entries_that_are_kept(run, monkeypatch):
    """Over several blocks, among subnormal, huge and equal numbers, all and none."""
    monkeypatch.setattr(selection_in_blocks, "RUN", run)
    rng = np.random.default_rng(2)
    size = 3 * 4096 + 17
    base = np.zeros(size, np.float32)
    models = [
        np.repeat(np.float32([3, 1, 1e-30, 0, -1]), size // 5 + 1)[:size],
        rng.normal(size=size).astype(np.float32) ** 9,
        np.full(size, -2.0, np.float32),
        rng.lognormal(0, 20, size).astype(np.float32),
    ]
    step = step_of("ties", models, base, weight=(1.0,) * 4)
    held = Held(step, models, base, 2 * 4096 + 5)
    wanted = np.array([[size // 2, 1, 4097, 0], [size, size - 1, 0, 77]])
    selected = select(held, magnitudes, wanted)
    found = []
    for block in held.blocks():
        own = [np.abs(x).view(np.int32) for x in block.models] * 2
        cut = cuts(selected, magnitudes, block)
        ranges = zip(own, selected.threshold, cut, strict=True)
        found.append([(k > t) | ((k == t) & (np.arange(len(k)) < c)) for k, t, c in ranges])
    masks = np.concatenate(found, 1)
    np.testing.assert_array_equal(masks.sum(1).reshape(2, 4), wanted)
    for mask, x in zip(masks, models * 2, strict=True):
        order = np.argsort(-np.abs(x), kind="stable")
        assert mask[order[: mask.sum()]].all()


def test_few_passes_find_a_threshold():
    rng = np.random.default_rng(3)
    models = [x.astype(np.float32) for x in rng.normal(size=(2, 2**18))]
    held = Held(
        step_of("ties", models, np.zeros_like(models[0]), weight=(1.0, 1.0), density=0.3), models, np.zeros_like(models[0])
    )
    calls = []
    each = held.each
    held.each = lambda function: calls.append(1) or each(function)
    kernel_of(held.step).survey(held)
    assert len(calls) <= 7


def test_a_vote_that_is_a_tie_elects_plus():
    """Though 0.3 d is rounded: no product is fused with the sum."""
    base = np.arange(100, dtype=np.float32) / 64
    delta = np.float32(7 / 64) * np.where(np.arange(100) % 2, 1, -1).astype(np.float32)
    models = [base + delta, base - delta]
    np.testing.assert_array_equal(models[0] - base, base - models[1])
    found = run(Held(step_of("ties", models, base, weight=(0.3, 0.3)), models, base)).values
    close(found, np.maximum(*models))


def test_masks_are_those_in_memory():
    key = jax.random.key(SEED)
    shape = (2, 5000)
    expected = draw(jax.random.fold_in(key, 0), {NAME: 0.3}, {NAME: np.zeros(shape, np.float32)})[NAME]
    for model in range(2):
        got = masks.uniform(masks.key_of(SEED, NAME), masks.place_of(5000 * model + 700), 4300)
        np.testing.assert_array_equal(np.asarray(got) < 0.3, expected[model, 700:])


def test_places_beyond_32_bits():
    key, start = masks.key_of(1, "x"), 3 * 2**32 - 3
    got = masks.uniform(key, masks.place_of(start), 8)
    places = start + np.arange(8)
    words = threefry_2x32(key, np.concatenate([places >> 32, places & 0xFFFFFFFF]).astype(np.uint32))
    bits = np.asarray(words[:8] ^ words[8:])
    np.testing.assert_array_equal(got, (bits >> 9) / 2**23)


@pytest.mark.parametrize("method", ["della", "della_linear"])
@pytest.mark.parametrize("shape", [(6, 7), (11,), (4, 3, 2)])
def test_della(method, shape, monkeypatch):
    """Against float64, drawn with the same numbers; in runs of rows too."""
    models, base = tensors(shape)
    density, epsilon = np.array([0.5, 1.0, 0.6]), 0.3
    step = step_of(method, models, base, weight=WEIGHTS, density=tuple(density), epsilon=epsilon, lambda_=0.8)
    taus = np.stack(models).astype(np.float64) - base
    rows = np.abs(np.stack(models) - base).reshape(3, shape[0] if len(shape) > 1 else 1, -1)
    ranks = rows.argsort(-1, kind="stable").argsort(-1)
    reach = np.where(density < 1, epsilon, 0)[:, None, None]
    p = (density[:, None, None] + reach * (2 * ranks / (rows.shape[-1] - 1) - 1)).reshape(3, -1)
    numbers = np.asarray(masks.uniform(masks.key_of(SEED, NAME), masks.place_of(0), p.size)).reshape(p.shape)
    terms = np.array(WEIGHTS)[:, None] * np.where(numbers < p, taus.reshape(3, -1) / p, 0)
    added = terms.sum(0)
    if method == "della":
        agree = np.where(added >= 0, terms > 0, terms < 0)
        whole = (agree * np.array(WEIGHTS)[:, None]).sum(0)
        added = (agree * terms).sum(0) / np.where(whole, whole, 1)
    for length in (2**20, 5):
        monkeypatch.setattr(della, "BLOCK", length)
        close(run(Held(step, models, base)).values, base.reshape(-1) + 0.8 * added)


@pytest.mark.parametrize("method", ["dare_linear", "della_linear", "ties", "breadcrumbs"])
def test_sums_of_magnitudes_are_kept(method):
    """With mergekit's conventions what is kept of a model is rescaled to the sum of magnitudes of the whole."""
    models, base = tensors((9, 10), count=1)
    given = {"weight": (1.0,), "density": 0.5, "rescale": True} | ({"normalize": False} if method == "ties" else {})
    found = run(Held(step_of(method, models, base, **given), models, base, 40), mergekit_semantics=True).values
    moved, tau = found - base.reshape(-1), (models[0] - base).reshape(-1)
    assert 20 < np.count_nonzero(np.abs(moved) > 1e-6) < 70
    np.testing.assert_allclose(np.abs(moved).sum(), np.abs(tau).sum(), rtol=1e-5)


def test_nothing_is_kept_at_density_zero():
    models, base = tensors((5, 6))
    for method in ("ties", "dare_linear", "breadcrumbs", "della"):
        found = run(Held(step_of(method, models, base, weight=WEIGHTS, density=0.0), models, base)).values
        np.testing.assert_array_equal(found, base.reshape(-1), err_msg=method)


@pytest.mark.parametrize("method", ["linear", "ties", "iso_c", "sce"])
def test_running_statistics_are_averaged(method):
    models, base = tensors((4,))
    base = None if method == "linear" else base
    given = {"weight": WEIGHTS} if method in ("linear", "ties") else {}
    step = step_of(method, models, base, name="layer1.bn.running_var", **given)
    close(run(Held(step, models, base)).values, np.mean(models, 0))
    assert (
        np.abs(run(Held(step, models, base), mergekit_semantics=True).values - np.mean(models, 0)).max()
        > (method != "iso_c") * 1e-3
    )


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_tensors_of_one_entry_and_of_none(method, shape):
    spec = METHODS[method]
    count = spec.most or 2
    models, base = tensors(shape, count=count)
    required = {p.name: (0.5,) * count if p.scope != "shared" else 0.5 for p in spec.parameters if p.default is None}
    given = required | {name: 0.5 for name in ("density", "select_topk") if any(p.name == name for p in spec.parameters)}
    base = base if spec.base in ("origin", "origin or none") else None
    found = run(Held(step_of(method, models, base, **given), models, base))
    assert found.values.shape == (math.prod(shape),) and found.nonfinite == 0


def test_what_is_not_finite_is_counted():
    models, _ = tensors((50,), count=2)
    models[0][3], models[1][4] = np.nan, 1e38
    found = run(Held(step_of("linear", models, None, "F16", weight=(0.5, 0.5)), models, None))
    assert found.nonfinite == 2 and 0 < found.rounding < 1e-2
    with pytest.raises(ValueError, match=r"KarcherMean is undefined for 'layers.3.mlp.weight', which has NaN or infinities"):
        run(Held(step_of("karcher", models, None), models, None))


@pytest.mark.parametrize("method", ["ties", "dare_ties", "breadcrumbs_ties", "sce", "iso_c", "iso_cts", "tsv_m", "wudi"])
@pytest.mark.parametrize("normalize", [True, False])
def test_nan_of_one_model_does_not_pass_for_the_base(method, normalize):
    models, base = tensors((6, 5), count=2)
    models[1][2, 3] = np.nan
    known = {p.name for p in METHODS[method].parameters}
    given = {"weight": (1.0, 0.5), "density": 1.0, "gamma": 0.0, "normalize": normalize}
    found = run(Held(step_of(method, models, base, **{k: v for k, v in given.items() if k in known}), models, base))
    assert np.isnan(found.values.reshape(6, 5)[2, 3]) and found.nonfinite > 0


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("linear", {"weight": (1.0, -1.0)}, "linear needs weights whose sum is not zero for 'layers.3.mlp.weight'"),
        ("multislerp", {"weight": (1.0, -1.0)}, "multislerp needs weights whose sum is not zero"),
        ("slerp", {"t": 0.3}, "Slerp is undefined for opposite tensors, as those at 'layers.3.mlp.weight' are"),
        ("della", {"weight": (1.0, 1.0), "density": 0.2, "epsilon": 0.3}, "Della needs epsilon < density"),
    ],
)
def test_undefined(method, given, message):
    (model,), base = tensors((5, 6), count=1)
    models = [model, -2 * model]
    with pytest.raises(ValueError, match=message):
        run(
            Held(
                step_of(method, models, base if method == "della" else None, **given),
                models,
                base if method == "della" else None,
            )
        )


def test_unknown_method():
    models, _ = tensors((3,))
    step = dataclasses.replace(step_of("linear", models, None, weight=WEIGHTS), method="lineer")
    with pytest.raises(ValueError, match=r"lineer.*linear"):
        kernel_of(step)


def test_parameters_do_not_compile_again():
    models, base = tensors((60,))
    for k in range(3):
        step = step_of("ties", models, base, weight=(0.1 + k, 0.3, 0.4), density=0.2 + 0.1 * k, lambda_=1.0 - 0.1 * k)
        run(Held(step, models, base, 20 + 7 * k))
        if k == 0:
            before = task_vectors.merged._cache_size()
    assert task_vectors.merged._cache_size() == before
