"""`npmerge.linear`: the apply that linear merges share."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.names import is_statistic
from npmerge import Average, Stack, combine, stack_models
from npmerge.linear import constant
from tests.npmerge.toys import array, normal


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4), (1, 4), (3, 2, 4)], ids=str)
@pytest.mark.parametrize("with_base", [False, True])
def test_against_numpy(shape, with_base):
    leaf, base = normal(0, 3, 2, 4), normal(1, 2, 4)
    c = normal(2, *shape).reshape((*shape[:1], *(1,) * (3 - len(shape)), *shape[1:]))
    stack = Stack({"w": jnp.asarray(leaf, jnp.float32)}, {"w": jnp.asarray(base, jnp.float32)} if with_base else None)
    expected = base + (c * (leaf - base)).sum(0) if with_base else (c * leaf).sum(0)
    if shape[0] == 1:  # one coefficient for all models
        c = np.broadcast_to(c, (3, *c.shape[1:]))
    got = combine({"w": jnp.asarray(c, jnp.float32)}, stack)
    chex.assert_trees_all_close(got, {"w": expected.astype(np.float32)}, rtol=1e-5, atol=1e-5)


def test_a_large_offset_does_not_swallow_the_difference_in_half_precision():
    """2048 + 1 needs more than float16 has: rounding before the sum would give 2048, one rounding of 2049.5 gives 2050."""
    models = [{"w": jnp.array([2048.0], jnp.float16)}, {"w": jnp.array([2052.0], jnp.float16)}]
    with jax.numpy_dtype_promotion("standard"):
        merged = combine({"w": jnp.array([[0.625], [0.375]], jnp.float32)}, stack_models(models))
    assert merged["w"].dtype == jnp.float16
    assert float(merged["w"][0]) == 2050.0


def test_float64_stays_float64():
    with jax.enable_x64(True):
        stack = Stack({"w": jnp.asarray(normal(0, 2, 5), jnp.float64)})
        with jax.numpy_dtype_promotion("standard"):
            merged = Average()(stack)
        assert merged["w"].dtype == jnp.float64
        chex.assert_trees_all_close(merged["w"], normal(0, 2, 5).mean(0), rtol=1e-15)


def test_coefficients_are_of_the_models_of_the_stack():
    """Or of one for all of them."""
    models = [{"k": array(k, 2, 3)} for k in range(3)]
    theta = Average().init(stack_models(models))
    for others in (models[:2], [*models, models[0]]):
        with pytest.raises(ValueError, match=f"theta at 'k' is of 3 models: the stack has {len(others)}"):
            Average().apply(theta, stack_models(others))
    chex.assert_trees_all_close(
        combine({"k": jnp.full((1, 1, 1), 1 / 3)}, stack_models(models)), Average()(stack_models(models))
    )


def test_constant_has_one_number_per_model_and_tensor():
    stack = stack_models([{"k": array(0, 2, 3), "s": array(1)}, {"k": array(2, 2, 3), "s": array(3)}])
    expected = {"k": np.full((2, 1, 1), 0.25, np.float32), "s": np.full((2,), 0.25, np.float32)}
    chex.assert_trees_all_equal(constant(stack, 0.25), expected)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("batch_stats/norm/mean", True),
        ("net/batch_stats/norm/var", True),
        ("layer/running_mean", True),
        ("layer/running_var", True),
        ("params/mean", False),
        ("params/norm/scale", False),
        ("params/my_batch_stats_kernel", False),
    ],
)
def test_what_counts_as_running_statistics(path, expected):
    assert is_statistic(path) is expected
