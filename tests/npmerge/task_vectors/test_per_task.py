"""Networks for each task against float64 numpy, written from the formulas, and their limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npmerge import Box, Emr, Learned, PerParameter, TallMasks, TaskArithmetic, stack_models
from npmerge.task_vectors.bits import packed, unpacked
from tests.npmerge.task_vectors.test_transforms import BASE, MODELS, SHAPES, STACK, VECTORS, close, flat, moved, unflat
from tests.npmerge.toys import normal

BOTH = pytest.mark.parametrize("merge", [Emr(), TallMasks()], ids=lambda m: type(m).__name__)


def emr64(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The unified vector, and a mask and a number for each task."""
    sign = np.where(x.sum(0) >= 0, 1, -1)
    unified = sign * np.where(x * sign > 0, np.abs(x), 0).max(0)
    masks = x * sign > 0
    return unified, masks, np.abs(x).sum(1) / np.abs(masks * unified).sum(1)


def test_emr():
    unified, masks, scales = emr64(flat(VECTORS))
    theta = Emr().init(STACK)
    close(Emr().apply(theta, STACK), moved(unflat(unified)))
    networks = Emr().networks(theta, STACK)
    np.testing.assert_allclose(networks.scales, scales, rtol=1e-5)
    for k in range(3):
        close(networks.network(k), moved(unflat(scales[k] * masks[k] * unified)))


def test_emr_by_hand():
    base, rows = {"w": jnp.zeros(4)}, ([4, 1, -1, 0], [-2, 3, -3, 1], [-1, 0, 1, -1])
    stack = stack_models([{"w": jnp.asarray(r, jnp.float32)} for r in rows], base)
    theta = Emr().init(stack)
    np.testing.assert_array_equal(Emr().apply(theta, stack)["w"], [4, 3, -3, 1])  # a sum of zero elects plus
    found = [np.asarray(Emr().task(theta, stack, k)["w"]) for k in range(3)]
    np.testing.assert_allclose(found[0], np.array([4, 3, -3, 0]) * 6 / 10, rtol=1e-6)
    np.testing.assert_allclose(found[1], np.array([0, 3, -3, 1]) * 9 / 7, rtol=1e-6)
    np.testing.assert_array_equal(found[2], 0)  # loses every vote


@pytest.mark.parametrize("threshold", [0.0, 0.4, 1.0])
def test_tall_masks(threshold):
    x = flat(VECTORS)
    masks = np.abs(x) > threshold * np.abs(x.sum(0) - x)
    merge = TallMasks(threshold, 0.7)
    theta = merge.init(STACK)
    close(merge.apply(theta, STACK), TaskArithmetic(0.7)(STACK))
    for k in range(3):
        close(merge.task(theta, STACK, k), moved(unflat(0.7 * masks[k] * x.sum(0))))


def test_a_threshold_of_zero_masks_where_a_task_vector_is_zero():
    rows = np.where(normal(1, 3, 9) > 0, normal(2, 3, 9), 0)
    found = TallMasks(0.0).masks({"w": jnp.asarray(rows, jnp.float32)})["w"]
    np.testing.assert_array_equal(found, rows != 0)


@BOTH
def test_one_task_is_its_model(merge):
    stack = stack_models(MODELS[:1], BASE)
    theta = merge.init(stack)
    for network in (merge.task(theta, stack, 0), merge.task(theta, stack, jnp.int32(0)), merge.apply(theta, stack)):
        close(network, MODELS[0])


@BOTH
def test_networks_are_traceable_and_differentiable(merge):
    theta = merge.init(STACK)

    def loss(theta, stack, k):
        return sum(jnp.square(x).sum() for x in merge.task(theta, stack, k).values())

    both = jax.jit(jax.value_and_grad(loss, (0, 1)))
    still = stack_models([BASE] * 3, BASE)  # zero task vectors: 0 / 0
    for stack, k in ((STACK, 1), (STACK, 2), (still, 0)):
        value, gradient = both(theta if stack is STACK else merge.init(still), stack, k)
        expected = sum(np.square(x).sum() for x in merge.task(merge.init(stack), stack, k).values())
        assert float(value) == pytest.approx(float(expected), rel=1e-5)
        chex.assert_tree_all_finite(gradient)
        assert stack is still or all(bool(jnp.any(g[k] != 0)) for g in jax.tree.leaves((gradient[0], gradient[1].params)))


@BOTH
def test_statistics_are_those_of_the_task_and_dtypes_stay(merge):
    def half(model, mean):
        return {"w": jnp.asarray(model["kernel"], jnp.bfloat16), "batch_stats": {"mean": jnp.full(2, mean, jnp.bfloat16)}}

    stack = stack_models([half(m, k) for k, m in enumerate(MODELS)], half(BASE, 9))
    network = merge.task(merge.init(stack), stack, 2)
    chex.assert_trees_all_equal_shapes_and_dtypes(network, half(BASE, 9))
    np.testing.assert_array_equal(np.asarray(network["batch_stats"]["mean"], np.float32), 2)


def test_a_task_takes_one_bit_for_each_parameter():
    networks = TallMasks().networks(TallMasks().init(STACK), STACK)
    entries = sum(np.prod(s) for s in SHAPES.values())
    expected = {"base": 4 * entries, "vector": 4 * entries, "masks": 3 * (2 + 1), "scales": 12, "statistics": 0}
    assert networks.nbytes == expected
    mask = normal(3, 2, 3, 5) > 0
    np.testing.assert_array_equal(unpacked(packed(jnp.asarray(mask)), (3, 5)), mask)
    assert unpacked(packed(jnp.asarray([True, False])), ()).tolist() == [True, False]


def test_a_learned_start_has_its_networks_too():
    learned = Learned(Emr(), PerParameter(), Box())
    theta = learned.coefficients(learned.init(STACK), STACK)
    close(Emr().task(theta, STACK, 1), Emr().task(Emr().init(STACK), STACK, 1))


def test_errors():
    theta = Emr().init(STACK)
    for odd in (3, -1, np.int64(7), jnp.int32(7), 1.0, True, "1", None):
        with pytest.raises(ValueError, match="there are the tasks 0 to 2, got"):
            Emr().task(theta, STACK, odd)
    with pytest.raises(ValueError, match="needs the stack of models"):
        Emr().task(STACK, theta, 1)
    chex.assert_trees_all_equal(*(Emr().task(theta, STACK, k) for k in (1, np.int64(1), jnp.int32(1))))
    with pytest.raises(ValueError, match="Emr needs a base"):
        Emr().networks(Emr().init(STACK), STACK._replace(base=None))
    with pytest.raises(ValueError, match="threshold must be a finite number"):
        TallMasks(-1.0)
