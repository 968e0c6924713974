"""The zoo: for networks as users of JAX write them, the nodes that theory says and THE test, all at once and one by one."""

import functools
import math

import jax
import pytest

import alignment
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
