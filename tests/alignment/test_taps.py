"""Reading features out of a forward pass."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from tests.alignment import networks


def test_features_are_the_hidden_activations_computed_by_hand():
    net = networks.network("mlp")
    first, second, x = net.variables["first"], net.variables["second"], np.asarray(net.inputs)
    h1 = np.maximum(x @ np.asarray(first["kernel"]) + np.asarray(first["bias"]), 0)
    h2 = np.maximum(h1 @ np.asarray(second["kernel"]) + np.asarray(second["bias"]), 0)
    found = alignment.capture(net.apply, net.graph, net.variables, net.inputs)
    chex.assert_trees_all_close(found, {"first": h1, "second": h2}, atol=1e-6)


def test_every_position_of_an_image_is_a_sample():
    net = networks.network("resnet")
    found = alignment.capture(net.apply, net.graph, net.variables, net.inputs)
    sides = {"stem": 8, "block1/conv1": 8, "block2/conv1": 4, "block2/conv2": 4, "block3/conv1": 2, "block3/conv2": 2}
    expected = {f"params/{n}": (3 * s * s, net.nodes[f"params/{n}"][0]) for n, s in sides.items()}
    assert {name: x.shape for name, x in found.items()} == expected
    assert all(float(x.min()) >= 0 for x in found.values())  # the taps stand behind the ReLU


def test_a_node_of_two_intervals_is_read_from_both():
    net = networks.network("option_a")
    found = alignment.capture(net.apply, net.graph, net.variables, net.inputs)
    assert found["params/block3/conv2"].shape == (3 * 2 * 2, 6)
    pooled = {n: found[f"params/{n}"].reshape(3, -1, k).mean(1) for n, k in (("block3/conv2", 6),)}
    head = net.variables["params"]["head"]["kernel"]
    # the head sees the joint node of the last stage at 0:3 and 11:14: removing it there must explain the change of the output
    cut = jax.tree.map(lambda x: x, net.variables)
    cut["params"]["head"]["kernel"] = head.at[jnp.array([0, 1, 2, 11, 12, 13])].set(0)
    difference = net.apply(net.variables, net.inputs) - net.apply(cut, net.inputs)
    rows = head[jnp.array([0, 1, 2, 11, 12, 13])]
    chex.assert_trees_all_close(difference, pooled["block3/conv2"] @ rows, atol=1e-5)


def test_the_batch_size_may_differ_from_the_traced_one():
    net = networks.network("mlp")
    x = networks.data(3, 5)
    found = alignment.capture(net.apply, net.graph, net.variables, x)
    each = [alignment.capture(net.apply, net.graph, net.variables, x[i : i + 1]) for i in range(3)]
    chex.assert_trees_all_close(found, jax.tree.map(lambda *xs: jnp.concatenate(xs), *each), atol=1e-6)


def test_features_transform_with_their_node():
    """What transport promises: the features of moved variables are push @ the features."""
    for name in ("mlp", "option_a", "vgg", "concatenation"):
        net = networks.network(name)
        moved, index = networks.shuffle(net.graph, net.variables, 3)
        before = alignment.capture(net.apply, net.graph, net.variables, net.inputs)
        after = alignment.capture(net.apply, net.graph, moved, net.inputs)
        chex.assert_trees_all_close(after, {n: x[:, index[n]] for n, x in before.items()}, atol=1e-5)


@pytest.mark.parametrize("name", ["linear_mlp", "attention", "fused_attention"])
def test_features_of_linear_nodes_transform_by_push_not_by_its_inverse_transpose(name):
    """A tap on keys instead of queries would transform by the inverse transpose and mislead CCA."""
    net = networks.network(name)
    keys = jax.random.split(jax.random.key(1), len(net.graph.nodes))
    maps = {n: alignment.maps.random_element(node, k) for (n, node), k in zip(net.graph.nodes.items(), keys, strict=True)}
    before = alignment.capture(net.apply, net.graph, net.variables, net.inputs)
    for node, m in maps.items():
        moved = alignment.transport(net.graph, {node: m}, net.variables)
        after = alignment.capture(net.apply, net.graph, moved, net.inputs)
        chex.assert_trees_all_close(after[node], before[node] @ m.push.T, atol=1e-4)


def test_capture_is_traceable():
    net = networks.network("concatenation")
    eager = alignment.capture(net.apply, net.graph, net.variables, net.inputs)
    jitted = jax.jit(lambda v, x: alignment.capture(net.apply, net.graph, v, x))(net.variables, net.inputs)
    chex.assert_trees_all_close(eager, jitted, atol=1e-6)


def test_another_function_is_refused():
    net, other = networks.network("mlp"), networks.network("linear_mlp")
    with pytest.raises(ValueError, match=r"'first'.*trace the graph from this very function"):
        alignment.capture(other.apply, net.graph, net.variables, net.inputs)
