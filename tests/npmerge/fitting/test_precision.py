"""Narrow networks under wide thetas, and gradients that keep less."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from npmerge import CrossEntropy, fit, mixed_precision, remat, weight_space
from tests.npmerge.test_sharding import ADAM, EVEN, LOSS, NP, STACK, apply, examples


def test_the_network_is_narrow_and_theta_is_not() -> None:
    seen = []

    def watched(params, x):
        seen.extend([params["w0"].dtype, x.dtype])
        return apply(params, x)

    loss = weight_space(NP, mixed_precision(watched), CrossEntropy())
    found = fit(NP.init(STACK), loss, STACK, EVEN, ADAM, steps=20)
    assert set(map(str, seen)) == {"bfloat16"} and {x.dtype for x in jax.tree.leaves(found.theta)} == {np.dtype("float32")}
    wide = fit(NP.init(STACK), LOSS, STACK, EVEN, ADAM, steps=20)
    np.testing.assert_allclose(found.history.loss, wide.history.loss, rtol=0.02)
    assert found.history.loss[-1] < 0.9 * found.history.loss[0]
    assert not np.array_equal(found.history.loss, wide.history.loss)


def test_whole_numbers_stay() -> None:
    network = mixed_precision(lambda v, x: v["table"][x], "float16")
    assert network({"table": jnp.ones((3, 2))}, jnp.array([2, 1])).dtype == jnp.float16


def deep(params, x):
    for w in params:
        x = jax.nn.gelu(jnp.tanh(x @ w))
    return x


def test_what_is_computed_anew_is_the_same_and_less_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """What the compiler makes of it is seen on accelerators only: that for CPUs undoes it."""
    params = [
        jnp.asarray(np.random.default_rng(k).standard_normal((16, 16)).astype(np.float32), np.float32) / 4 for k in range(4)
    ]
    inputs = jnp.asarray(examples(0, 32)[0])

    def kept(network) -> int:
        print_saved_residuals(network, params, inputs)
        return sum("f32[32,16]" in line and "from the argument" not in line for line in capsys.readouterr().out.splitlines())

    chex.assert_trees_all_close(
        *(jax.grad(lambda p, f=f: jnp.square(f(p, inputs)).mean())(params) for f in (deep, remat(deep))), rtol=1e-6, atol=1e-7
    )
    assert kept(deep) > 12 and kept(remat(deep)) == 4  # the matrix products


def test_wrong_ones_are_refused_and_networks_are_values() -> None:
    with pytest.raises(ValueError, match="nearest is 'bfloat16'"):
        mixed_precision(apply, "bfloat")
    with pytest.raises(ValueError, match="remat takes a network"):
        remat(3)
    assert hash(remat(apply)) == hash(remat(apply)) and mixed_precision(apply) == mixed_precision(apply)
