"""Incoming weights as features, against inner products of the kernels themselves."""

import numpy as np

from alignment import identity
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
    assert found["first"].samples == 1 and not found["first"].mean.any()
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
