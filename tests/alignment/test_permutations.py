"""Permutations of many nodes at once, those inside others too."""

import chex
import jax
import numpy as np
import pytest

from alignment.graph import path_name
from alignment.permutations import after, inverse, permuted, unmoved
from tests.alignment import networks

NESTED = ["mlp", "option_a", "towers", "fused_attention", "grouped_queries"]


def moved(graph, variables, orders):
    return jax.tree_util.tree_map_with_path(lambda path, x: permuted(graph, path_name(path), np.asarray(x), orders), variables)


@pytest.mark.parametrize("name", NESTED)
def test_an_inverse_brings_everything_back(name):
    net = networks.network(name)
    there, orders = networks.shuffle(net.graph, net.variables, 4)
    back = inverse(net.graph, orders)
    chex.assert_trees_all_equal(back, networks.undone(net.graph, orders))
    chex.assert_trees_all_equal(moved(net.graph, there, back), jax.tree.map(np.asarray, net.variables))
    for both in (after(net.graph, orders, back), after(net.graph, back, orders)):
        chex.assert_trees_all_equal(both, unmoved(net.graph))
    chex.assert_trees_all_equal(inverse(net.graph, back), orders)


@pytest.mark.parametrize("name", NESTED)
def test_an_inverse_undoes_the_last_move_first(name):
    net = networks.network(name)
    first, second = (networks.shuffle(net.graph, net.variables, seed)[1] for seed in (4, 5))
    expected = after(net.graph, inverse(net.graph, second), inverse(net.graph, first))
    chex.assert_trees_all_equal(inverse(net.graph, after(net.graph, first, second)), expected)
