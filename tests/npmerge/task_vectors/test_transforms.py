"""Merges of transformed task vectors against float64 numpy, written from the formulas, and their limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npmerge import Average, Breadcrumbs, ConsensusTA, Dare, Della, Pcb, Sce, Stack, TaskArithmetic, Ties, stack_models
from npmerge.arithmetic import column
from npmerge.task_vectors.elections import DisjointMean, Elect, ElectedMean
from npmerge.task_vectors.transforms import Drop, Trim
from tests.npmerge.toys import normal

SHAPES = {"kernel": (3, 4), "bias": (4,)}
KEY = jax.random.key(0)
BASE, *MODELS = [
    {n: normal(10 * s + k, *shape).astype(np.float32) for k, (n, shape) in enumerate(SHAPES.items())} for s in range(4)
]
STACK = stack_models(MODELS, BASE)
VECTORS = {n: np.stack([m[n].astype(np.float64) - BASE[n] for m in MODELS]) for n in SHAPES}


def close(got, expected, rtol=1e-5):
    for name, x in expected.items():
        np.testing.assert_allclose(np.asarray(got[name], np.float64), x, rtol=rtol, atol=1e-6)


def moved(deltas):
    """The base and what a formula adds to it."""
    return {n: BASE[n] + deltas[n] for n in SHAPES}


def flat(tensors) -> np.ndarray:
    """(models, entries): each model as one vector, in the order of the tree."""
    return np.concatenate([tensors[n].reshape(len(MODELS), -1) for n in sorted(SHAPES)], axis=1)


def unflat(row: np.ndarray) -> dict[str, np.ndarray]:
    parts = np.split(row, np.cumsum([np.prod(SHAPES[n]) for n in sorted(SHAPES)])[:-1].astype(int))
    return {n: part.reshape(SHAPES[n]) for n, part in zip(sorted(SHAPES), parts, strict=True)}


def of_flat(formula):
    """A formula of (models, entries) on the whole model."""
    return moved(unflat(formula(flat(VECTORS))))


def of_each(formula):
    """A formula of (models, entries) on each tensor by itself."""
    return moved({n: formula(x.reshape(len(x), -1)).reshape(x.shape[1:]) for n, x in VECTORS.items()})


def merged(merge, *rows, key=None) -> np.ndarray:
    """What a merge makes of task vectors: the base is zero."""
    base = {"w": jnp.zeros(len(rows[0]))}
    return np.asarray(merge(stack_models([{"w": jnp.asarray(r, jnp.float32)} for r in rows], base), key=key)["w"])


def top64(x: np.ndarray, density: float) -> np.ndarray:
    """Each row with its largest magnitudes only."""
    kept = np.zeros_like(x)
    for row, out in zip(x, kept, strict=True):
        index = np.argsort(-np.abs(row), kind="stable")[: max(1, round(density * row.size))]
        out[index] = row[index]
    return kept


def elect64(x: np.ndarray) -> np.ndarray:
    sign = np.where(x.sum(0) >= 0, 1, -1)
    return np.where(np.sign(x) == sign, x, 0)


def disjoint64(x: np.ndarray) -> np.ndarray:
    return elect64(x).sum(0) / np.maximum((elect64(x) != 0).sum(0), 1)


def test_ties():
    density = 0.4
    close(Ties(density, 0.7)(STACK), of_flat(lambda x: 0.7 * disjoint64(top64(x, density))))
    close(Ties(density, 0.7, scope="tensor")(STACK), of_each(lambda x: 0.7 * disjoint64(top64(x, density))))
    total = of_flat(lambda x: 0.3 * elect64(top64(x, density)).sum(0))
    close(Ties(density, 0.3, merge="sum")(STACK), total)


def test_ties_by_hand():
    np.testing.assert_allclose(merged(Ties(1.0), [1, -2, 3], [-4, 5, 6]), [-4, 5, 4.5])
    np.testing.assert_allclose(merged(Ties(1.0), [3, 1, -1, 0, -2], [-1, -1, 1, 0, 0]), [3, 1, 1, 0, -2])  # ties are plus
    np.testing.assert_allclose(merged(Ties(0.4), [5, 1, -6, 2, 0], [1, 1, -1, 1, -1]), [3, 1, -6, 0, 0])  # the first of equals


def test_ties_at_its_ends():
    close(Ties(1.0)(stack_models(MODELS[:1], BASE)), MODELS[0])
    close(Ties(0.2, scale=0.0)(STACK), BASE)
    assert np.count_nonzero(merged(Ties(1e-6), [1, -2, 3])) == 1  # at least one entry
    same = np.abs(normal(5, 3, 6)) * np.sign(normal(6, 6))  # signs that agree
    np.testing.assert_allclose(merged(Ties(1.0), *same), same.mean(0), rtol=1e-6)
    np.testing.assert_allclose(merged(Ties(1.0, merge="sum"), *same), same.sum(0), rtol=1e-6)


def test_running_statistics_are_no_task_vectors():
    """They do not compete for what is kept, and are averaged."""
    models = [{"w": np.float32([k, 0.1]), "norm": {"mean": np.float32([100.0 * k, 2])}} for k in (1, 3)]
    base = {"w": np.zeros(2, np.float32), "norm": {"mean": np.zeros(2, np.float32)}}
    result = Ties(0.5)(stack_models(models, base))
    np.testing.assert_allclose(result["w"], [2, 0])
    np.testing.assert_allclose(result["norm"]["mean"], [200, 2])


def test_dare_with_density_one_is_task_arithmetic():
    close(Dare(1.0, 0.4)(STACK), TaskArithmetic(0.4)(STACK))
    close(Dare(1.0, 1 / 3)(STACK), Average()(STACK))
    close(Dare(1.0, 0.4, elect=True)(STACK), of_each(lambda x: 0.4 * elect64(x).sum(0)))


def test_dare_is_task_arithmetic_in_expectation():
    rows = np.tile([2.0, -1.0], 5000), np.tile([1.0, 3.0], 5000)
    result = merged(Dare(0.25, 0.5), *rows, key=KEY).reshape(-1, 2)
    assert set(np.unique(result[:, 0])) == {0.0, 2.0, 4.0, 6.0}  # 0.5 / 0.25 times 0, 1, 2 or both
    error = 4 * 0.5 * np.sqrt(5 * 3 / 5000)  # four standard deviations: variance x^2 (1 - p) / p of an entry
    np.testing.assert_allclose(result.mean(0), [1.5, 1.0], atol=error * np.sqrt(2))
    one = merged(Dare(0.25, 0.25), np.ones(10_000), key=KEY)
    assert np.mean(one == 1) == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 1e4))
    assert np.all((one == 0) | (one == 1))


def test_dare_elects_among_what_is_left():
    row, key = np.ones(64), jax.random.key(4)
    first, second = Dare(0.5, 1.0).init(
        stack_models([{"w": jnp.asarray(s * row, jnp.float32)} for s in (1, 1)], {"w": jnp.zeros(64)}), key=key
    )["w"]
    result = merged(Dare(0.5, 1.0, elect=True), row, -2 * row, key=key)
    np.testing.assert_allclose(result, np.where(second > 0, -4, np.where(first > 0, 2, 0)))


def test_dare_keeps_the_sum_of_magnitudes():
    row = np.exp(normal(7, 40))
    result = merged(Dare(0.5, 1.0, rescale="l1"), row, key=KEY)
    kept = result != 0
    assert 0 < kept.sum() < 40
    np.testing.assert_allclose(result, kept * row * row.sum() / row[kept].sum(), rtol=1e-5)
    assert np.isfinite(merged(Dare(0.01, 1.0, rescale="l1"), [1.0, 2.0], [0.0, 0.0], key=KEY)).all()  # nothing left


def test_masks_depend_on_the_key_and_the_path_alone():
    def masks(tree, key=KEY):
        stack = Stack(jax.tree.map(lambda x: x[None], tree), jax.tree.map(jnp.zeros_like, tree))
        return Dare(0.5, 1.0).init(stack, key=key)

    x = jnp.ones(64)
    found = masks({"b": x, "z": x})
    np.testing.assert_array_equal(found["z"], masks({"a": x, "z": x})["z"])
    np.testing.assert_array_equal(found["z"], masks({"b": x, "z": x})["z"])
    assert np.any(found["b"] != found["z"])
    assert np.any(found["z"] != masks({"b": x, "z": x}, jax.random.key(1))["z"])


WEIGHTS, DENSITIES = (0.5, 1.5, -0.25), (0.3, 0.8, 1.0)


def weighted64(x: np.ndarray, weights=WEIGHTS) -> np.ndarray:
    return x * np.array(weights)[:, None]


def each64(keep, x: np.ndarray, densities=DENSITIES) -> np.ndarray:
    return np.concatenate([keep(row[None], density) for row, density in zip(x, densities, strict=True)])


@pytest.mark.parametrize("weights", [WEIGHTS, (0.2, 0.5, 1.0)])
def test_weights_and_densities_of_each_model(weights):
    def mean(x, w):
        total = (np.array(w)[:, None] * (elect64(x) != 0)).sum(0)
        return elect64(x).sum(0) / np.where(total != 0, total, 1)

    def trimmed(x):
        return weighted64(each64(top64, x), weights)

    close(Ties(DENSITIES, 0.7, weights=weights)(STACK), of_flat(lambda x: 0.7 * mean(trimmed(x), weights)))
    total = Ties(DENSITIES, 0.3, merge="sum", scope="tensor", weights=weights)
    close(total(STACK), of_each(lambda x: 0.3 * elect64(trimmed(x)).sum(0)))
    close(Della(1.0, weights=weights)(STACK), of_each(lambda x: mean(weighted64(x, weights), weights)))
    band = Breadcrumbs(DENSITIES, 0.25, 0.4, weights=weights)
    kept = of_each(lambda x: 0.4 * weighted64(each64(lambda row, d: band64(row, d, 0.25), x), weights).sum(0))
    close(band(STACK), kept)
    close(TaskArithmetic(0.4, weights)(STACK), of_each(lambda x: 0.4 * weighted64(x, weights).sum(0)))
    close(Dare(1.0, 0.4, weights=weights)(STACK), TaskArithmetic(0.4, weights)(STACK))


@pytest.mark.parametrize("kind", [Ties, Dare, Breadcrumbs, Della])
def test_equal_weights_and_densities_are_one(kind):
    several = kind([0.5] * 3, weights=np.ones(3))
    assert hash(several) == hash(kind((0.5,) * 3, weights=(1, 1, 1)))
    for name, x in kind(0.5)(STACK, key=KEY).items():
        np.testing.assert_allclose(several(STACK, key=KEY)[name], x, rtol=1e-6)
    with pytest.raises(ValueError, match="got 2 densities for 3 models"):
        kind((0.5, 0.6))(STACK, key=KEY)
    with pytest.raises(ValueError, match=f"{kind.__name__} needs one weight per model: got 2 weights for 3 models"):
        kind(weights=(1, 2))(STACK, key=KEY)
    for density in ((0.5, 1.5), (0.0, 0.5), (0.5, "1"), ()):
        with pytest.raises(ValueError, match="density must be a number above 0 and at most 1"):
            kind(density)


def test_models_are_dropped_with_their_own_density():
    rows = np.ones((3, 10_000))
    result = merged(Dare((0.25, 0.5, 1.0), 1.0, weights=(1, 10, 100)), *rows, key=KEY)
    assert set(np.unique(result)) == {100.0, 104.0, 120.0, 124.0}  # 1 / 0.25 is 4, 10 / 0.5 is 20
    first, second = result % 20 == 4, result % 100 >= 20
    np.testing.assert_allclose([first.mean(), second.mean()], [0.25, 0.5], atol=4 * 0.5 / 100)
    drop = Della((0.5, 1.0), 0.2).transforms[0]
    found = drop({"w": jnp.ones((2, 1))}, {"w": jnp.ones((2, 64))}, KEY)["w"]
    np.testing.assert_array_equal(found[1], 1)
    assert 0 < np.count_nonzero(found[0]) < 64


def test_weights_that_cancel():
    for kind in (Ties, Della):
        with pytest.raises(ValueError, match="a mean needs weights whose sum is not zero"):
            kind(weights=(0.1, 0.2, -0.3))
    # sums 1 + 1 + 2, -1 and 1 + 1 over the weights 1 - 1 + 2, -1 and 1 - 1 of those that agree
    result = merged(Ties(1.0, weights=(1, -1, 2)), [1, 0, 1], [-1, 1, -1], [1, 0, 0])
    np.testing.assert_allclose(result, [2, 1, 0])
    with pytest.raises(ValueError, match="one weight per model: got 2 weights for 3"):
        TaskArithmetic(weights=(1, 2))(STACK)


def test_elections():
    vectors = {"w": jnp.asarray([[3.0, 1, 0, -1], [-1, -1, -2, 0], [-1, 0, 0, -5]])}
    ones = {"w": jnp.ones((3, 1))}
    by_sum, by_count = (np.asarray(Elect(by)(ones, vectors, KEY)["w"]) for by in ("sum", "count"))
    np.testing.assert_array_equal(by_sum, [[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(by_count, [[0, 1, 0, 1], [1, 0, 1, 0], [1, 0, 0, 1]])


def band64(x: np.ndarray, density: float, gamma: float) -> np.ndarray:
    kept = np.zeros_like(x)
    for row, out in zip(x, kept, strict=True):
        order, count = np.argsort(-np.abs(row), kind="stable"), max(1, round(density * row.size))
        first = min(round(gamma * row.size), row.size - count)
        index = order[first : first + count]
        out[index] = row[index]
    return kept


@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.25), (0.9, 0.3)])
def test_breadcrumbs(density, gamma):
    close(Breadcrumbs(density, gamma, 0.4)(STACK), of_each(lambda x: 0.4 * band64(x, density, gamma).sum(0)))


def test_breadcrumbs_by_hand():
    row = [5, -1, 2, -4, 3, 0.5, 0, 1, -6, 0.1]
    np.testing.assert_allclose(merged(Breadcrumbs(0.4, 0.2, 1.0), row), [0, -1, 2, -4, 3, 0, 0, 0, 0, 0])  # the first 1
    np.testing.assert_allclose(merged(Breadcrumbs(0.7, 0.01, 1.0), row), [5, -1, 2, -4, 3, 0, 0, 1, -6, 0])  # no outliers
    close(Breadcrumbs(1.0, 0.0, 0.4)(STACK), TaskArithmetic(0.4)(STACK))


def test_della_with_density_one_is_ties_without_trimming():
    close(Della(1.0)(STACK), of_each(disjoint64))
    assert not any(t.random for t in Della(1.0).transforms)


def test_della_keeps_large_entries_of_a_row_more_often():
    """The columns of a kernel are the rows of the paper, a vector is one; each entry is kept with p and divided by p."""
    models = 4000
    drop = Della(0.5, 0.2).transforms[0]
    kernel = np.array([[1.0, 9, -8], [-2, 7, 8], [3, -8, 8]])  # ranks 0 1 2, 2 0 1, 0 1 2 (of equals, the first)
    vectors = {"kernel": kernel, "bias": np.array([4.0, -1, 2, 3, -5]), "one": np.array([2.0]), "number": np.array(3.0)}
    stacked = {n: jnp.asarray(np.tile(x, (models, *(1,) * x.ndim)), jnp.float32) for n, x in vectors.items()}
    ones = {n: jnp.ones((models,) + (1,) * x.ndim) for n, x in vectors.items()}
    found = {n: np.asarray(c) for n, c in jax.jit(drop)(ones, stacked, KEY).items()}
    expected = {
        "kernel": np.array([[0.3, 0.7, 0.3], [0.5, 0.3, 0.5], [0.7, 0.5, 0.7]]),
        "bias": np.array([0.6, 0.3, 0.4, 0.5, 0.7]),
        "one": np.array([0.5]),
        "number": np.array(0.5),
    }
    for name, p in expected.items():
        np.testing.assert_allclose(found[name].max(0), 1 / p, rtol=1e-6)
        np.testing.assert_allclose((found[name] > 0).mean(0), p, atol=4 * 0.5 / np.sqrt(models))
        assert np.all((found[name] == 0) | np.isclose(found[name], 1 / p))


def rank64(x: np.ndarray) -> np.ndarray:
    """0 to 1 by the magnitude within what enters an output unit: all axes but the last, or a vector as a whole."""
    rows = np.abs(x).reshape(-1, x.shape[-1] if x.ndim > 1 else 1)
    return (rows.argsort(0, kind="stable").argsort(0) / (len(rows) - 1)).reshape(x.shape)


def test_dropping_by_chance_on_several_models():
    """DARE with election and DELLA as a whole: from the entries that the draw kept, the rest in float64."""
    vectors = {n: jnp.asarray(x, jnp.float32) for n, x in VECTORS.items()}
    ones = {n: jnp.ones((3,) + (1,) * len(shape)) for n, shape in SHAPES.items()}

    def left(merge, p):
        first = jax.jit(merge.transforms[0])(ones, vectors, jax.random.fold_in(KEY, 0))
        kept = {n: np.asarray(c) != 0 for n, c in first.items()}
        assert all(0 < k.mean() < 1 for k in kept.values())
        return {n: np.where(kept[n], x / p(x), 0) for n, x in VECTORS.items()}

    dare, della = Dare(0.6, 0.3, elect=True), Della(0.6, 0.2, 0.8)
    expected = {n: 0.3 * elect64(x).sum(0) for n, x in left(dare, lambda x: 0.6).items()}
    close(dare(STACK, key=KEY), moved(expected))
    rows = left(della, lambda x: np.stack([0.4 + 0.4 * rank64(row) for row in x]))
    close(della(STACK, key=KEY), moved({n: 0.8 * disjoint64(x) for n, x in rows.items()}))


def sce64(x: np.ndarray, density: float) -> np.ndarray:
    chosen = top64(x.var(0)[None], density)[0] > 0
    x = np.where(chosen, x, 0)
    weights = (x**2).mean(1, keepdims=True)
    weights = weights / weights.sum() * (elect64(x) != 0)
    total = weights.sum(0)
    return (weights * x).sum(0) / np.where(total > 0, total, 1)


def test_weights_that_cancel_up_to_rounding_leave_nothing_to_divide_by():
    """Of two models of three there is an entry, and their weights add up to a thousandth of a millionth of their size."""
    ones = {"w": jnp.asarray([[1.0], [1.0], [0.0]])}
    found = DisjointMean(weights=(1e4, -10000.001, 5.0))(ones, ones, KEY)
    np.testing.assert_array_equal(found["w"], np.zeros((3, 1)))


@pytest.mark.parametrize("density", [0.4, 1.0])
def test_sce(density):
    close(Sce(density, 0.8)(STACK), of_each(lambda x: 0.8 * sce64(x, density)))


def test_sce_limits():
    row = normal(8, 12)
    np.testing.assert_allclose(merged(Sce(), row, row, row), row, rtol=1e-6)
    tiny = merged(Sce(0.5), *(1e-25 * normal(k, 12) for k in range(3)))  # whose squares vanish in float32
    np.testing.assert_allclose(1e25 * tiny, sce64(np.stack([normal(k, 12) for k in range(3)]), 0.5), rtol=1e-5)
    np.testing.assert_array_equal(merged(Sce(0.5), np.zeros(4), np.zeros(4)), 0)
    # weights 9 and 1 of 10; the smaller one alone where the larger has no entry; erased where it is the minority
    np.testing.assert_allclose(merged(Sce(), [3, 3, 0, 0], [1, -1, 0, 0]), [2.8, 3, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(merged(Sce(), [3, 0], [0, 1]), [3, 1], rtol=1e-6)


def pcb64(x: np.ndarray, density: float) -> np.ndarray:
    def softmax(row: np.ndarray, times: int = 1) -> np.ndarray:
        e = np.exp(times * row / np.linalg.norm(row))
        return e / e.sum()

    scores = np.stack([softmax(row**2, len(x)) * sum(softmax(row * other) for other in x) for row in x])
    b = top64(scores, density)
    return (b * x).sum(0) / np.where(b.sum(0) > 0, b.sum(0), 1)


def test_pcb():
    density = 0.3
    close(Pcb(density, 0.8)(STACK), of_flat(lambda x: 0.8 * pcb64(x, density)))
    close(Pcb(density, 0.8, scope="tensor")(STACK), of_each(lambda x: 0.8 * pcb64(x, density)))


def test_pcb_limits():
    row = normal(8, 12)
    np.testing.assert_allclose(merged(Pcb(1.0), row, row, row), row, rtol=1e-6)
    np.testing.assert_allclose(merged(Pcb(1.0), np.zeros(3), [1, -2, 3]), pcb_of_a_zero_vector([1, -2, 3]), rtol=1e-5)
    np.testing.assert_allclose(1e25 * merged(Pcb(0.5), 1e-25 * row, 2e-25 * row), merged(Pcb(0.5), row, 2 * row), rtol=1e-5)


def pcb_of_a_zero_vector(row) -> np.ndarray:
    """A zero vector scores each parameter alike: 1/3 within, and 1/3 with either."""
    row = np.asarray(row, np.float64)
    inner = np.exp(2 * row**2 / np.linalg.norm(row**2))
    outer = np.exp(row**2 / np.linalg.norm(row**2))
    own = inner / inner.sum() * (outer / outer.sum() + 1 / 3)
    return own * row / (own + 2 / 9)


def consensus64(x: np.ndarray, threshold: float, agreement: int) -> np.ndarray:
    total = x.sum(0)
    masks = np.abs(x) > threshold * np.abs(total - x)
    return np.where(masks.sum(0) >= agreement, total, 0)


@pytest.mark.parametrize(("threshold", "agreement"), [(0.4, 2), (1.0, 2), (0.6, 3)])
def test_consensus(threshold, agreement):
    expected = of_flat(lambda x: 0.3 * consensus64(x, threshold, agreement))
    assert any((expected[n] == BASE[n]).any() and (expected[n] != BASE[n]).any() for n in SHAPES)
    close(ConsensusTA(threshold, agreement, 0.3)(STACK), expected)


def test_consensus_at_its_ends():
    close(ConsensusTA(0.4, 0, 0.3)(STACK), TaskArithmetic(0.3)(STACK))
    close(ConsensusTA()(STACK), of_flat(lambda x: 0.3 * consensus64(x, 0.4, 2)))
    for bad in ({"threshold": float("nan")}, {"threshold": "0.4"}, {"agreement": -1}, {"agreement": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ConsensusTA(**bad)
    close(ConsensusTA(0.4, 4, 0.3)(STACK), BASE)
    close(ConsensusTA(10**20, 10**20, 0.3)(STACK), BASE)  # more than JAX takes as an integer
    close(ConsensusTA(0.4, 1, 1.0)(stack_models(MODELS[:1], BASE)), MODELS[0])
    # needed by both, the second, the first alone; with threshold 0 by all that have an entry
    np.testing.assert_allclose(merged(ConsensusTA(0.5, 2, 1.0), [2, 0, 5, 0], [3, 1, 1, 0]), [5, 0, 0, 0])
    np.testing.assert_allclose(merged(ConsensusTA(0.0, 2, 1.0), [2, 0, 5, 0], [3, 1, 1, 0]), [5, 0, 6, 0])


@pytest.mark.parametrize("kind", [Ties, Dare, Breadcrumbs, Della, Sce, Pcb])
def test_bad_fields(kind):
    for density in (0, -0.1, 1.1, float("nan"), "0.5", True):
        with pytest.raises(ValueError, match="density must be a number above 0 and at most 1"):
            kind(density=density)
    for scale in (float("inf"), float("nan"), "1"):
        with pytest.raises(ValueError, match="scale must be a finite number, got"):
            kind(scale=scale)


def test_bad_choices():
    with pytest.raises(ValueError, match="scope must be one of 'tensor', 'model', got 'models'"):
        Ties(scope="models")
    with pytest.raises(ValueError, match="merge must be one of 'mean', 'sum', got 'max'"):
        Ties(merge="max")
    with pytest.raises(ValueError, match="rescale must be one of 'density', 'l1', None, got 'l2'"):
        Drop(0.5, "l2")
    with pytest.raises(ValueError, match="by must be one of 'sum', 'count', got 'mean'"):
        Elect("mean")
    with pytest.raises(ValueError, match=r"outliers must be a number from 0 to 1, got 2"):
        Trim(0.5, outliers=2)
    with pytest.raises(ValueError, match=r"outliers must be a number from 0 to 1, got -0.1"):
        Breadcrumbs(gamma=-0.1)
    with pytest.raises(ValueError, match=r"got epsilon 0.3 and density 0.2, the probabilities would leave"):
        Della(0.2, 0.3)
    with pytest.raises(ValueError, match=r"epsilon must be a number from 0 to 1"):
        Della(epsilon="0.1")
    with pytest.raises(ValueError, match=r"threshold must be a finite number"):
        ConsensusTA(float("nan"))
    with pytest.raises(ValueError, match=r"agreement must be an integer of 0 or more, got 1.5"):
        ConsensusTA(agreement=1.5)
    with pytest.raises(ValueError, match="scale must be a finite number, got nan"):
        ConsensusTA(scale=float("nan"))
    with pytest.raises(ValueError, match=r"key must be jax.random.key"):
        Dare()(STACK, key=3)


def test_masks_do_not_depend_on_how_many_devices_hold_the_models():
    tree = {"a": normal(20, 3, 8, 4).astype(np.float32), "z": normal(21, 3, 8).astype(np.float32)}
    stack = Stack(tree, jax.tree.map(lambda x: np.zeros_like(x[0]), tree))
    alone = Dare(0.5).init(stack, key=KEY)
    for devices in (2, 8):
        mesh = jax.make_mesh((devices,), ("units",), axis_types=(jax.sharding.AxisType.Auto,))
        placed = jax.tree.map(lambda x, m=mesh: jax.device_put(x, jax.NamedSharding(m, jax.P(None, "units"))), tree)
        jax.tree.map(np.testing.assert_array_equal, Dare(0.5).init(stack._replace(params=placed), key=KEY), alone)
    turned = Stack(*(dict(reversed(t.items())) for t in stack))
    jax.tree.map(np.testing.assert_array_equal, Dare(0.5).init(turned, key=KEY), alone)


def test_signed_shares_are_election_and_mean():
    """Entries that cancel out, and parameters where no model has any, among them."""
    vectors = {n: jnp.asarray(x.round(), jnp.float32) for n, x in VECTORS.items()}
    for weights in (None, (0.5, 2.0, 1.0)):
        ones = {n: column(np.ones(3) if weights is None else weights, x) for n, x in vectors.items()}
        expected = DisjointMean(weights=weights)(Elect("sum")(ones, vectors, KEY), vectors, KEY)
        chex.assert_trees_all_close(ElectedMean(weights)(ones, vectors, KEY), expected, rtol=1e-6)
    for weights in ((1.0, -1.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="signed shares need weights above zero"):
            ElectedMean(weights)
