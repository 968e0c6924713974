"""Gradients at what sites make: with what they read they are the gradients of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment.activations.taps import gradients
from tests.alignment.networks import data
from tests.alignment.test_sites import CASES


@pytest.mark.parametrize(
    "name", ["positions", "weight on the left", "batched experts", "shared in a scan", "scanned experts in groups", "grouped"]
)
def test_inputs_times_gradients_are_those_of_the_weight(name):
    function, x_shape, w_shape, _ = CASES[name]
    variables, x = {"w": data(*w_shape, seed=1)}, data(*x_shape, seed=2)

    def apply(v, x):
        return jnp.tanh(function(x, v["w"]))

    graph = alignment.trace(apply, variables, x)
    (site,) = graph.sites

    @jax.jit
    def both(v, x, c):
        outputs, back = jax.vjp(lambda v: apply(v, x), v)
        found = gradients(apply, graph, v, x, sites=["w"])
        product = jnp.matmul(found.inputs["w"].mT, found.pull(c)["w"], precision="highest")
        return outputs, found.outputs, site.matrix(back(c)[0]["w"]), product

    cotangent = data(*jax.eval_shape(apply, variables, x).shape, seed=3)
    outputs, same, expected, product = both(variables, x, cotangent)
    np.testing.assert_allclose(same, outputs, atol=1e-6)
    np.testing.assert_allclose(product, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected).max() > 0.1
