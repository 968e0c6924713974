"""A stranger's ResNet-20, trained on CIFAR-10: the graph holds on real weights and real images.

The files are not part of the repository; without them the tests are skipped.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import npmerge as nm
from alignment import ActivationMatching, WeightMatching
from alignment.verification import random_element
from experiments.published_resnets import load_test_set
from npmerge.checkpoint.names import from_named, load_named, to_named
from npmerge.models import ResNetCifar, build, example

DATA = Path(__file__).parents[3] / "shared" / "data"
CHECKPOINT = DATA / "resnet_cifar10" / "resnet20_akamaster.safetensors"
IMAGES = DATA / "cifar10" / "x_test.npy.xz"
pytestmark = pytest.mark.skipif(not (CHECKPOINT.exists() and IMAGES.exists()), reason="needs ../shared/data")


@pytest.fixture(scope="module")
def images():
    return tuple(load_test_set(IMAGES.parent, 200))


# of the first 200 images, as PyTorch counts them; of all 10,000 both print the published accuracy (experiments)
CORRECT = {
    "resnet20_akamaster.safetensors": 180,
    "resnet20_akamaster.th": 180,
    "resnet20_bognev.th": 181,
    "resnet20_zheng.th": 179,
    "resnet56_akamaster.th": 187,
    "resnet56_zheng.th": 184,
}


@pytest.mark.parametrize("name", CORRECT)
def test_published_networks_are_as_good_as_published(images, name):
    config, variables = load_named(CHECKPOINT.parent / name)
    assert config == ResNetCifar(9 if "56" in name else 3)
    correct = 200 * nm.evaluate(jax.jit(build(config).apply), variables, [images]).accuracy
    assert abs(correct - CORRECT[name]) < 1.5


def test_a_real_file_is_written_back_bit_for_bit():
    stored = load_file(CHECKPOINT)
    back = to_named(ResNetCifar(), from_named(ResNetCifar(), stored), like=stored)
    assert list(back) == list(stored)
    jax.tree.map(np.testing.assert_array_equal, back, stored)


def test_a_real_network_is_read_verified_and_recovered(images):
    config, variables = load_named(CHECKPOINT)
    assert config == ResNetCifar()
    network = build(config)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, network.variables)
    graph = nm.trace(network.apply, variables, example(config))
    sizes = sorted(node.size for node in graph.nodes.values())
    # three inner nodes in each stage, the stream of stage 1, and what stages 2 and 3 add to it
    assert sizes == sorted([16] * 3 + [32] * 3 + [64] * 3 + [16, 16, 32])
    assert {node.group for node in graph.nodes.values()} == {"permutation"}
    assert nm.verify(network.apply, graph, variables, images[0][:8], key=jax.random.key(0)) < 1e-5

    keys = jax.random.split(jax.random.key(1), len(graph.nodes))
    planted = {name: random_element(node, k) for (name, node), k in zip(graph.nodes.items(), keys, strict=True)}
    hidden = nm.transport(graph, planted, variables)
    stats = nm.collect(network.apply, graph, [variables, hidden], [images], [nm.NodeMoments()])
    by_weights = nm.align(WeightMatching(), graph, [variables, hidden])[1]
    jax.tree.map(np.testing.assert_array_equal, by_weights, variables)
    # two units of this network never fire: activations cannot tell them apart, and the function does not care
    by_activations = nm.align(ActivationMatching(), graph, [variables, hidden], stats=stats)[1]
    expected, got = (network.apply(v, images[0][:8]) for v in (variables, by_activations))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    same = jax.tree.map(lambda a, b: jnp.mean(a == b), by_activations["params"]["conv"], variables["params"]["conv"])
    assert float(same["kernel"]) > 0.8
