"""Ours against mergekit 0.1.5, as tests/fixtures/record_mergekit.py recorded it: the same, or a difference that
npmerge/methods/README.md lists and that is shown here."""

import pathlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npmerge import (
    ArceeFusion,
    Average,
    Breadcrumbs,
    Dare,
    Della,
    KarcherMean,
    ModelStock,
    MultiSlerp,
    NearSwap,
    NuSlerp,
    Passthrough,
    Sce,
    Slerp,
    TaskArithmetic,
    Ties,
    WeightedAverage,
    stack_models,
)
from npmerge.methods.della import DropByRank
from npmerge.task_vectors.composed import Composed
from npmerge.task_vectors.elections import Elect
from npmerge.task_vectors.transforms import Drop, Trim

NAMES = ("matrix", "vector", "equal")
DRAWS = 2000  # of the recorded means

with np.load(pathlib.Path(__file__).parents[2] / "fixtures" / "mergekit_0_1_5.npz") as file:
    FOUND = {name: file[name] for name in file.files}


def recorded(case: str) -> dict[str, np.ndarray]:
    """Its tensors, matrices as JAX has them."""
    return {name: FOUND[f"{case}/{name}"].T for name in NAMES}


def scaled(factor: float, tree: dict) -> dict:
    return {name: np.float32(factor) * x for name, x in tree.items()}


BASE, A, B, C = (recorded(model) for model in ("base", "a", "b", "c"))
ALL, TWO, ONE = (A, B, C), (A, B), (A,)


def ours(merge, models, base=None, key=None) -> dict[str, np.ndarray]:
    stack = stack_models(models, base)
    return {name: np.asarray(x) for name, x in merge(stack, key=key).items()}


def close(got, expected, names=NAMES, atol=2e-6):
    for name in names:
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-6, atol=atol, err_msg=name)


def differs(got, expected, name: str):
    assert np.abs(got[name] - expected[name]).max() > 1e-3


@dataclass(frozen=True)
class Crumbs(Composed):
    """Breadcrumbs with election, a sequence of transforms that we have no name for."""

    scale: float = 1.0

    @property
    def transforms(self):
        return (Trim(0.5, outliers=0.2), Elect("sum"))


WITHOUT_BASE = {
    "linear": (WeightedAverage((1, 2, 5)), ALL),
    "linear_sum": (WeightedAverage((1, 2, -5), normalise=False), ALL),
    "passthrough": (Passthrough(1.5), ONE),
    "slerp": (Slerp(0.3), TWO),
    "nuslerp": (NuSlerp((3, 1)), TWO),
    "nuslerp_beyond": (NuSlerp((2, -1)), TWO),
    "nuslerp_channel": (NuSlerp((3, 1), per_channel=True), TWO),
    "multislerp": (MultiSlerp((1, 2, 5)), ALL),
    "nearswap": (NearSwap(0.3), TWO),
    "arcee_fusion": (ArceeFusion(), TWO),
    "slerp_beyond": (NuSlerp((-0.2, 1.2)), TWO),  # Slerp keeps to the arc between the models
}
WITH_BASE = {
    "nuslerp_base": (NuSlerp((3, 1), task_vectors=True), TWO),
    "multislerp_base": (MultiSlerp((1, 2, 5), task_vectors=True), ALL),
    "task_arithmetic": (TaskArithmetic(0.3), ALL),
    "task_arithmetic_mean": (Average(), ALL),
    "task_arithmetic_weights": (TaskArithmetic(1.0, (0.5, 0.3, -0.2)), ALL),
    "dare_linear": (Dare(1.0, 0.3), ALL),
    "dare_ties": (Dare(1.0, 0.3, elect=True), ALL),
    "dare_ties_mean": (Ties(1.0), ALL),
    "dare_ties_weights": (Dare(1.0, 1.0, elect=True, weights=(0.5, 0.3, 0.2)), ALL),
    "della": (Della(1.0), ALL),
    "della_weights": (Della(1.0, weights=(0.5, 0.3, 0.2)), ALL),
    "della_linear": (TaskArithmetic(0.3), ALL),
    "sce": (Sce(), ALL),
}
NO_TIES = {  # other than for "equal", of magnitudes that are equal, and of obtuse angles
    "model_stock": (ModelStock(), ALL),
    "model_stock_two": (ModelStock(), TWO),
    "model_stock_filter": (ModelStock(per_channel=True), ALL),
    "ties": (Ties(0.5, scope="tensor"), ALL),
    "ties_sum": (Ties(0.5, 0.3, scope="tensor", merge="sum"), ALL),
    "ties_weights": (Ties((0.5, 0.7, 0.9), 0.8, scope="tensor", weights=(0.5, 0.3, 0.2)), ALL),
    "breadcrumbs_weights": (Breadcrumbs((0.5, 0.7, 0.4), 0.1, 1.0, weights=(0.5, 0.3, 0.2)), ALL),
    "breadcrumbs": (Breadcrumbs(0.5, 0.2, 0.3), ALL),
    "breadcrumbs_dense": (Breadcrumbs(0.9, 0.2, 0.3), ALL),
    "breadcrumbs_ties": (Crumbs(0.3), ALL),
    "sce_half": (Sce(0.5), ALL),
}


@pytest.mark.parametrize("case", [*WITHOUT_BASE, *WITH_BASE, *NO_TIES])
def test_the_same(case):
    merge, models = (WITHOUT_BASE | WITH_BASE | NO_TIES)[case]
    got = ours(merge, models, None if case in WITHOUT_BASE else BASE)
    close(got, recorded(case), NAMES if case in WITHOUT_BASE | WITH_BASE else ("matrix", "vector"))


def test_karcher_stops_early():
    """10 steps or an angle of 1e-5, in float32: agreement to that, not to rounding."""
    close(ours(KarcherMean(), ALL), recorded("karcher"), atol=2e-5)


def test_the_families_default_to_equal_weights_of_one():
    """`normalize` divides by the sum of the weights, so equal ones do not matter there."""
    close(recorded("task_arithmetic_mean"), ours(TaskArithmetic(1 / 3), ALL, BASE))


def test_channels_along_the_other_axis():
    """`nuslerp_row_wise` takes one angle per input: what ours gives of the transposed matrix."""
    turned = [{name: x.T for name, x in model.items()} for model in TWO]
    got = ours(NuSlerp((3, 1), per_channel=True), turned)
    close({name: x.T for name, x in got.items()}, recorded("nuslerp_row"))


def test_weights_that_cancel():
    close(recorded("nuslerp_cancel"), ours(NuSlerp(), TWO))  # t = 1/2
    assert not any(np.isfinite(x).all() for x in recorded("linear_cancel").values())
    for method in (NuSlerp, WeightedAverage):
        with pytest.raises(ValueError, match=f"{method.__name__} needs weights whose sum is not zero"):
            method((1, -1))(stack_models(TWO))


def test_opposite_tensors():
    close(recorded("slerp_opposite"), scaled(0.7 - 0.3 * 2, A))
    close(recorded("nuslerp_opposite"), scaled(0.75 - 0.25 * 2, A), ("equal",))
    assert np.abs(recorded("nuslerp_opposite")["matrix"]).max() > 1000  # where the cosine rounds to another number than -1
    close(recorded("multislerp_opposite"), scaled(0.5 - 0.5 * 2, A))
    for merge in (Slerp(0.3), NuSlerp((3, 1)), MultiSlerp()):
        with pytest.raises(ValueError, match=f"{type(merge).__name__} is undefined for opposite tensors"):
            merge(stack_models([A, scaled(-2, A)]))
    close(ours(ModelStock(), [A, scaled(-2, A)], scaled(0, A)), recorded("model_stock_opposite"))


def test_model_stock_of_task_vectors_at_obtuse_angles():
    taus = [np.float64(m["equal"]) - BASE["equal"] for m in ALL]
    pairs = [(0, 1), (0, 2), (1, 2)]
    cosine = np.mean([np.sum(taus[i] * taus[j]) / np.linalg.norm(taus[i]) / np.linalg.norm(taus[j]) for i, j in pairs])
    assert cosine < 0
    t = 3 * cosine / (1 + 2 * cosine)
    np.testing.assert_allclose(recorded("model_stock")["equal"], BASE["equal"] + t * sum(taus) / 3, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ours(ModelStock(), ALL, BASE)["equal"], BASE["equal"])


@pytest.mark.parametrize(
    ("case", "merge", "models"),
    [("model_stock", ModelStock(), ALL), ("sce", Sce(), ALL), ("nearswap", NearSwap(3e-8), TWO)],
    ids=["model_stock", "sce", "nearswap"],
)
def test_floors_make_a_merge_depend_on_the_scale_of_the_tensors(case, merge, models):
    """Ours has none: what is 1e-7 times as large gives 1e-7 times as much."""
    got = ours(merge, [scaled(1e-7, m) for m in models], scaled(1e-7, BASE))
    close(scaled(1e7, got), recorded(case), ("matrix", "vector"), atol=1e-5)
    differs(scaled(1e7, recorded(f"{case}_tiny")), recorded(case), "matrix")


def test_numbers_of_entries_are_rounded():
    """Down there, to the nearest here: of 13.5 and 4.5 entries 13 and 4 are kept, or 14 and 4."""
    theirs, got = recorded("ties_odd"), ours(Ties(0.45, scope="tensor"), ONE, BASE)
    assert [np.count_nonzero(theirs[name] != BASE[name]) for name in ("matrix", "vector")] == [13, 4]
    assert [np.count_nonzero(got[name] != BASE[name]) for name in ("matrix", "vector")] == [14, 4]
    close(ours(Ties(13 / 30, scope="tensor"), ONE, BASE), theirs, ("matrix", "vector"))


def test_trimming_the_whole_model_is_the_paper():
    whole, each = (ours(Ties(0.5, scope=scope), ONE, BASE) for scope in ("model", "tensor"))
    taus = np.concatenate([np.abs(A[name] - BASE[name]).ravel() for name in NAMES])
    kept = np.concatenate([(whole[name] != BASE[name]).ravel() for name in NAMES])
    assert taus[kept].min() >= taus[~kept].max()
    differs(whole, each, "matrix")


def test_of_equal_magnitudes_other_ones_are_kept():
    """Which, PyTorch's sort leaves open; here the first. So many, and of these magnitudes, on both sides."""
    tau = A["equal"] - BASE["equal"]
    theirs, got = (x["equal"] - BASE["equal"] for x in (recorded("ties_odd"), ours(Ties(0.45, scope="tensor"), ONE, BASE)))
    for kept in (theirs, got):
        np.testing.assert_array_equal(np.sort(np.abs(kept).ravel())[11:], np.sort(np.abs(tau).ravel())[11:])
        assert set(kept[kept != tau]) == {0}
    assert np.any(theirs != got)


def draws(transform, names=("matrix", "vector")) -> dict[str, np.ndarray]:
    """Coefficients of as many draws for the task vector of the first model: as of so many models."""
    vectors = {name: jnp.broadcast_to(A[name] - BASE[name], (DRAWS, *A[name].shape)) for name in names}
    ones = {name: jnp.ones((DRAWS,) + (1,) * A[name].ndim) for name in names}
    return {name: np.asarray(c) for name, c in jax.jit(transform)(ones, vectors, jax.random.key(0)).items()}


def test_dare_keeps_the_sum_of_magnitudes_which_is_not_unbiased():
    l1, paper = (draws(Drop(0.5, rescale)) for rescale in ("l1", "density"))
    for name in ("matrix", "vector"):
        tau = A[name] - BASE[name]
        drawn = recorded("dare_linear_half")[name] - BASE[name]
        kept = np.abs(drawn) > 1e-6
        np.testing.assert_allclose(drawn, kept * tau * np.abs(tau).sum() / np.abs(tau[kept]).sum(), atol=1e-5)
        theirs = (recorded("dare_mean")[name] - BASE[name]) / tau
        error = 4 * l1[name].std(0) / np.sqrt(DRAWS)
        assert np.all(np.abs(theirs - l1[name].mean(0)) < np.sqrt(2) * error)
        assert np.all(np.abs(paper[name].mean(0) - 1) < 4 / np.sqrt(DRAWS))
        share = (recorded("dare_mask")[name] - BASE[name]) / tau
        np.testing.assert_allclose(share, 0.5, atol=4 * 0.5 / np.sqrt(DRAWS))
    ranked = np.argsort(np.abs(tau))  # of the vector: ten entries
    assert theirs[ranked[-1]] < 0.85 and theirs[ranked[0]] > 1.5


def test_della_keeps_with_the_same_probabilities_and_rescales_otherwise():
    found = draws(DropByRank(0.5, 0.2))
    for name in ("matrix", "vector"):
        tau, p = A[name] - BASE[name], 1 / found[name].max(0)
        share = (recorded("della_mask")[name] - BASE[name]) / tau
        np.testing.assert_allclose(share, p, atol=4 * 0.5 / np.sqrt(DRAWS))
        np.testing.assert_allclose(found[name].mean(0), 1, atol=4 * np.sqrt((1 / p - 1) / DRAWS).max())  # the paper: unbiased
        drawn = recorded("della_half")[name] - BASE[name]
        kept = np.abs(drawn) > 1e-6
        np.testing.assert_allclose(drawn, kept * tau * np.abs(tau).sum() / np.abs(tau[kept]).sum(), atol=1e-5)


def test_merges_of_bfloat16_are_computed_in_it_there():
    """Here in float32, and rounded once."""
    low = [{name: jnp.asarray(x, jnp.bfloat16) for name, x in model.items()} for model in (*ALL, BASE)]
    merge, wide = Ties(0.5, scope="tensor"), [{name: x.astype(jnp.float32) for name, x in model.items()} for model in low]
    exact = ours(merge, wide[:3], wide[3])["matrix"]
    once = merge(stack_models(low[:3], low[3]))["matrix"]
    np.testing.assert_array_equal(once, jnp.asarray(exact, jnp.bfloat16))
    theirs = np.abs(recorded("ties_bfloat16")["matrix"] - exact)
    assert theirs.mean() > 1.2 * np.abs(np.float32(once) - exact).mean()
