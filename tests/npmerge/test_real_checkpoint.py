"""A stranger's ResNet-20, trained on CIFAR-10: the graph holds on real weights and real images.

The files are not part of the repository; without them the tests are skipped.
"""

import io
import lzma
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npmerge as nm
from alignment import ActivationMatching, WeightMatching
from alignment.maps import random_element
from npmerge.checkpoint.names import load_named
from npmerge.models import ResNetCifar, build, example

DATA = Path(__file__).parents[3] / "shared" / "data"
CHECKPOINT = DATA / "resnet_cifar10" / "resnet20_akamaster.safetensors"
IMAGES = DATA / "cifar10" / "x_test.npy.xz"
pytestmark = pytest.mark.skipif(not (CHECKPOINT.exists() and IMAGES.exists()), reason="needs ../shared/data")


@pytest.fixture(scope="module")
def images():
    filtered = np.load(io.BytesIO(lzma.decompress(IMAGES.read_bytes())))[:, :200]
    x = np.cumsum(np.cumsum(filtered, -2, dtype=np.uint8), -1, dtype=np.uint8)
    x = np.stack([x[0] + x[1], x[1], x[2] + x[1]], -1).astype(np.float32) / 255
    mean, deviation = np.array([[[[0.485, 0.456, 0.406]]]]), np.array([[[[0.229, 0.224, 0.225]]]])
    labels = np.load(IMAGES.parent / "labels.npz")["y_test"][:200]
    return ((x - mean) / deviation).astype(np.float32), labels.astype(np.int32)


def test_a_real_network_is_read_verified_and_recovered(images):
    config, variables = load_named(CHECKPOINT)
    assert config == ResNetCifar()
    network = build(config)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, network.variables)
    assert nm.evaluate(network.apply, variables, [images]).accuracy > 0.85  # 91.73 % on the whole test set

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
