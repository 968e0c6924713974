"""The zoo: for networks as users of JAX write them, the nodes that theory says and THE test, all at once and one by one."""

import functools
import math
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import pytest

import alignment
from alignment.graph import path_name
from alignment.permutations import after, permuted, unmoved
from tests.alignment import zoo_libraries, zoo_plain
from tests.alignment.networks import Network

BUILDERS = zoo_plain.BUILDERS | zoo_libraries.BUILDERS
KEY = jax.random.key(0)


@functools.cache
def network(name: str) -> Network:
    if name in zoo_libraries.REQUIRES:
        pytest.importorskip(zoo_libraries.REQUIRES[name])
    return BUILDERS[name]()


@pytest.mark.parametrize("name", BUILDERS)
def test_nodes_sizes_groups_and_copies_are_those_of_theory(name):
    net = network(name)
    nodes = net.graph.nodes.values()
    assert sorted((node.size, node.group, math.prod(node.copies)) for node in nodes) == net.nodes


@pytest.mark.parametrize("name", BUILDERS)
def test_group_elements_leave_the_function_unchanged(name):
    net = network(name)
    assert alignment.verify(net.apply, net.graph, net.variables, net.inputs, key=KEY) < 1e-5
    alone = alignment.verify_each(net.apply, net.graph, net.variables, net.inputs, key=KEY)
    assert {node: change for node, change in alone.items() if change > 1e-5} == {}


UNSEEN = {  # nodes that no activation shows, or only beside heads that are not matched yet
    "gram_weight": 1,
    "gram_weight_alone": 1,
    "normalised_queries_with_scale": 1,
    "switch_between_perceptrons": 2,
}


RESTARTS = {"switch_between_perceptrons": 8}  # in the network's own order this one ends in a local optimum


def planted(net: Network, names: Iterable[str]) -> tuple[Any, dict[str, np.ndarray]]:
    """The network with these nodes permuted, every copy in its own way, and the orders."""
    rng, orders = np.random.default_rng(5), unmoved(net.graph)
    for name in names:
        orders[name] = np.argsort(rng.random(orders[name].shape), axis=-1)

    def moved(path: tuple, leaf: Any) -> np.ndarray:
        return permuted(net.graph, path_name(path), np.asarray(leaf), orders)

    return jax.tree_util.tree_map_with_path(moved, net.variables), orders


def left_over(net: Network, orders: dict, found: dict) -> list[str]:
    """The nodes that are not back in their places."""
    still, now = unmoved(net.graph), after(net.graph, orders, found)
    return [name for name in still if not np.array_equal(still[name], now[name])]


@pytest.mark.parametrize("name", BUILDERS)
def test_planted_permutations_are_found_again_in_the_weights(name):
    net = network(name)
    other, orders = planted(net, net.graph.nodes)
    theta = alignment.WeightMatching(restarts=RESTARTS.get(name, 1)).init(net.graph, [net.variables, other])
    assert left_over(net, orders, theta[1]) == []


@pytest.mark.parametrize("name", BUILDERS)
def test_planted_permutations_are_found_again_in_the_activations(name):
    net = network(name)
    index = {i for node in net.graph.nodes.values() for i in node.index}  # matched through what is inside
    seen = [n for n in net.graph.nodes if n in net.graph.taps or n in index]
    assert len(net.graph.nodes) - len(seen) == UNSEEN.get(name, 0)
    other, orders = planted(net, seen)
    moments, models = alignment.NodeMoments(), [net.variables, other]
    measure = jax.jit(lambda models, x: moments.finalise(moments.measure(net.apply, net.graph, models, (x, None))))
    stats = {alignment.NodeMoments: measure(models, net.inputs)}
    with warnings.catch_warnings(action="ignore" if name in UNSEEN else "error"):
        theta = alignment.ActivationMatching().init(net.graph, models, stats=stats)
    assert left_over(net, orders, theta[1]) == []
