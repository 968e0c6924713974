"""Incoming weights as features, against inner products of the kernels themselves."""

import jax.numpy as jnp
import numpy as np

from alignment import identity, trace
from alignment.methods.incoming import IncomingWeights
from tests.alignment import networks


def compared(name, *known):
    """Of two models of a network, and how each of its nodes is seen once these are matched."""
    net = networks.network(name)
    models = [net.variables, net.another(1)]
    maps = {node: identity(net.graph.nodes[node].size, net.graph.nodes[node].copies) for node in known}
    incoming = IncomingWeights([net.graph] * 2, models)
    return [networks.flatten(m) for m in models], {node: incoming.joint(node, [maps] * 2) for node in net.graph.nodes}


def gram(*rows):
    every = np.concatenate([np.asarray(x, np.float64) for x in rows], axis=-2)
    return every @ every.swapaxes(-1, -2)


def test_kernels_and_biases_are_features_of_a_unit():
    models, found = compared("mlp")
    rows = [np.concatenate([v["first/kernel"].T, v["first/bias"][:, None]], 1) for v in models]
    np.testing.assert_allclose(found["first"].covariance, gram(*rows), rtol=1e-6)
    assert found["first"].samples == 1 and not found["first"].mean.any() and found["first"].mean.shape == (16,)
    assert found["second"] is None  # its kernel reads the first, and its bias alone says too little


def test_what_is_behind_nodes_that_are_matched_can_be_compared():
    models, found = compared("mlp", "first")
    rows = [np.concatenate([v["second/kernel"].T, v["second/bias"][:, None]], 1) for v in models]
    np.testing.assert_allclose(found["second"].covariance, gram(*rows), rtol=1e-6)


def test_copies_in_a_loop_are_apart_and_others_laid_end_to_end():
    _, found = compared("towers")
    assert found["layers/into#2"] is None  # in each step its kernels read the stream
    models, found = compared("towers", "embed")
    rows = [
        np.concatenate([np.einsum("kihd->khdi", v["layers/into"]), v["layers/with_bias"][..., None]], -1).reshape(3, 8, 8)
        for v in models
    ]
    np.testing.assert_allclose(found["layers/into#2"].covariance, gram(*rows), rtol=1e-6)


def test_what_is_known_of_a_unit_is_enough_unless_it_is_the_bias_of_kernels_to_come():
    """A node that two kernels make, of which one reads a node without a map, and one that a vector makes alone."""

    def apply(v, x):
        h = jnp.tanh(x @ v["a"])
        gated = jnp.tanh(jnp.broadcast_to(x[:, :1], (3, 5)) * jnp.broadcast_to(v["vector"], (3, 5)))
        return jnp.concatenate([jnp.tanh(x @ v["c"] + h @ v["d"]), gated], 1) @ v["e"]

    shapes = {"a": (4, 7), "c": (4, 6), "d": (7, 6), "vector": (5,), "e": (11, 2)}
    variables = {name: networks.data(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())}
    graph = trace(apply, variables, jnp.ones((3, 4)))
    incoming = IncomingWeights([graph], [variables])
    np.testing.assert_allclose(incoming.joint("c", [{}]).covariance, gram(variables["c"].T), rtol=1e-6)
    np.testing.assert_allclose(incoming.joint("vector", [{}]).covariance, gram(variables["vector"][:, None]), rtol=1e-6)
