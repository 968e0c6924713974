"""Selection of the largest magnitudes against a stable argsort, ties, zeros and subnormal numbers among the values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npmerge.task_vectors.selection import kept_of, largest
from tests.npmerge.toys import normal


def by_sorting(x: np.ndarray, count: int) -> np.ndarray:
    """The mask as a stable sort of float64 magnitudes gives it."""
    mask = np.zeros(x.size, bool)
    mask[np.argsort(-np.abs(x.astype(np.float64)).ravel(), kind="stable")[:count]] = True
    return mask.reshape(x.shape)


VALUES = {
    "normal": normal(0, 4, 6),
    "ties": np.random.default_rng(1).integers(-2, 3, (4, 6)),
    "zeros": np.where(normal(2, 4, 6) > 0.5, normal(3, 4, 6), 0) * np.array([1, -1, 1, -1, 1, -1]),
    "equal": np.full((4, 6), -0.5),
    "subnormal": 1e-45 * np.random.default_rng(4).integers(-9, 10, (4, 6)),
    "wide": 10.0 ** np.random.default_rng(5).integers(-30, 30, (4, 6)),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_exactly_those_that_a_stable_sort_takes(values):
    x = values.astype(np.float32)
    for count in range(x.size + 1):
        np.testing.assert_array_equal(largest(jnp.asarray(x), count), by_sorting(x, count))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_sixteen_bits(dtype):
    x = jnp.asarray(VALUES["ties"] * np.array([1, 1, 1e-4, 1e-7, 1, 0]), dtype)
    for count in (0, 1, 5, 11, 24):
        np.testing.assert_array_equal(largest(x, count), by_sorting(np.asarray(x), count))


def test_tensors_of_one_element_and_numbers():
    for shape in ((), (1,)):
        assert [bool(largest(jnp.full(shape, value), 1).all()) for value in (0.0, -2.0)] == [True, True]
        assert not largest(jnp.ones(shape), 0).any()


def test_nothing_to_select_from():
    assert largest({}, 0) == {}
    assert largest(jnp.zeros((0, 3)), 0).shape == (0, 3)


def test_a_tree_is_one_set_of_entries():
    values = [normal(6, 3, 2).round(), normal(7), normal(8, 5).round()]
    tree = {f"leaf{k}": jnp.asarray(x, jnp.float32) for k, x in enumerate(values)}
    flat = np.concatenate([np.ravel(x) for x in values]).astype(np.float32)
    for count in range(flat.size + 1):
        masks = largest(tree, count)
        assert {name: m.shape for name, m in masks.items()} == {name: x.shape for name, x in tree.items()}
        np.testing.assert_array_equal(np.concatenate([np.ravel(m) for m in masks.values()]), by_sorting(flat, count))


def test_the_count_may_be_traced_and_models_mapped_over():
    x = jnp.asarray(np.stack([VALUES["ties"], VALUES["normal"]]), jnp.float32)
    masks = jax.jit(lambda x, n: jax.vmap(lambda one: largest(one, n))(x))(x, jnp.uint32(7))
    np.testing.assert_array_equal(masks, [by_sorting(np.asarray(one), 7) for one in x])


@pytest.mark.parametrize("spread", [1, 9], ids=["normal", "heavy tails"])
def test_many_entries_of_few_magnitudes(spread):
    """More than the sample, one leaf above the size to join and one below; of the threshold's magnitude there are several."""
    flat = (1000 * normal(9, 300_000) ** spread).round().astype(np.float32)
    leaves = [jnp.asarray(x) for x in np.split(flat, [270_000])]
    for count in (1, 60_000, 299_999):
        masks = largest(leaves, count)
        np.testing.assert_array_equal(np.concatenate(masks), by_sorting(flat, count))


def test_leaves_may_be_sharded():
    mesh = jax.make_mesh((2,), ("entries",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.device_put(jnp.asarray(VALUES["ties"], jnp.float32), jax.NamedSharding(mesh, jax.P("entries")))
    np.testing.assert_array_equal(largest(placed, 7), by_sorting(VALUES["ties"], 7))


def test_how_many_a_density_keeps():
    assert [kept_of(d, 10) for d in (1e-9, 0.04, 0.2, 0.26, 0.999, 1)] == [1, 1, 2, 3, 10, 10]
    assert [kept_of(d, 100) for d in (0.07, 0.29, 0.57)] == [7, 29, 57]  # 0.07 * 100 is above 7, 0.29 * 100 below 29
    assert kept_of(0.2, 1) == 1


def test_refusals():
    with pytest.raises(ValueError, match=r"one dtype, got \['bfloat16', 'float32'\]"):
        largest([jnp.ones(2), jnp.ones(2, jnp.bfloat16)], 1)
    with pytest.raises(ValueError, match="cannot select among 4294967296 entries at once"):
        jax.eval_shape(lambda x: largest(x, 1), [jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)] * 2)
