"""Networks with other widths: doubling every unit, with half of what is read from it, leaves the function as it is."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import rectangular, resize, trace, transport, widths_of
from alignment.graph import Node, flatten
from alignment.maps import NodeMap
from tests.alignment import zoo_libraries, zoo_plain
from tests.alignment.test_zoo import network

BUILDERS = zoo_plain.BUILDERS | zoo_libraries.BUILDERS
UNEQUAL = {  # a unit that stands twice counts twice in a norm, in a softmax over experts, in a product with itself
    "weight_norm",
    "gram_weight_alone",
    "normalised_queries",
    "normalised_queries_with_scale",
    "soft_experts",
    "tied_embedding",
}


def doubled(node: Node) -> NodeMap:
    eye = np.eye(node.size, dtype=np.float32)
    push = np.broadcast_to(np.concatenate([eye, eye]), (*node.copies, 2 * node.size, node.size))
    return rectangular(push, np.swapaxes(push, -1, -2) / 2)


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in UNEQUAL])
def test_twice_the_units_read_by_half_are_the_same_function(name):
    net = network(name)
    wide = transport(net.graph, {n.name: doubled(n) for n in net.graph.nodes.values()}, net.variables)
    widths = {n.name: 2 * n.size for n in net.graph.nodes.values()}
    assert {path: x.size for path, x in flatten(wide).items()} != {p: math.prod(s) for p, s in net.graph.shapes.items()}
    larger = resize(net.apply, net.graph, wide, widths)
    for new, old in zip(
        jax.tree.leaves(larger(wide, net.inputs)), jax.tree.leaves(net.apply(net.variables, net.inputs)), strict=True
    ):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5 * float(jnp.abs(old).max()))


_ = alignment, trace, widths_of
