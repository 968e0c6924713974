"""Networks of torchvision, timm and transformers: the same function, its symmetries, a step of learning, and back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import npmerge as nm
from alignment import Graph, WeightMatching
from npmerge.checkpoint import TorchNetwork, torch_module
from tests.alignment.networks import shuffle
from tests.npmerge.checkpoint.torch.modules import MODULES, Case, case

STATISTICS = ("ResNet-50",)


@functools.cache
def known(name: str) -> tuple[Case, TorchNetwork, Graph]:
    found = case(name)
    network = torch_module(found.module, found.inputs, output=found.output)
    network = network._replace(apply=jax.jit(network.apply))
    return found, network, nm.trace(network.apply, network.variables, inputs(found))


def inputs(found: Case) -> jax.Array:
    return jnp.asarray(found.inputs.numpy())


def close(ours, theirs) -> bool:
    return np.abs(np.asarray(ours) - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("name", MODULES)
def test_outputs_are_those_of_pytorch(name):
    found, network, _ = known(name)
    assert close(network.apply(network.variables, inputs(found)), found())


NODES = {
    "ResNet-50": {"permutation": 4 + 2 * 16},  # a residual stream for each stage, two hidden layers in each block
    "ViT": {"permutation": 1 + 2 * 2, "linear": 2 * 2},  # stream, heads and hidden units; inside heads q with k, and v
    "U-Net": {"permutation": 2 * 10, "linear": 1},  # groups and channels in each; what is widened meets nothing nonlinear
    "GPT-2": {"permutation": 1 + 2 * 2, "linear": 2 * 2},
    "Llama": {"permutation": 1 + 2 * 3, "linear": 2},  # heads of keys, queries in each group, hidden units; values
    "Mixtral": {"permutation": 1 + 3, "linear": 1},  # hidden units in each expert; which expert it is stays
    "BERT": {"permutation": 2 + 2 * 2, "linear": 2 * 2},  # and the pooler
}


@pytest.mark.parametrize("name", MODULES)
def test_its_nodes_are_those_of_theory(name):
    groups = [node.group for node in known(name)[2].nodes.values()]
    assert {group: groups.count(group) for group in groups} == NODES[name]


@pytest.mark.parametrize(("name", "file"), [("ViT", "torch/modules.py:"), ("GPT-2", "gpt2/modeling_gpt2.py:")])
def test_what_is_held_fixed_is_told_by_the_line_of_the_module(name, file):
    assert {pinned.source.partition(":")[0] + ":" for pinned in known(name)[2].pinned} == {file}


@pytest.mark.parametrize("name", MODULES)
def test_group_elements_leave_the_function_unchanged(name):
    found, network, graph = known(name)
    assert nm.verify(network.apply, graph, network.variables, inputs(found), key=jax.random.key(0)) < 1e-4


@pytest.mark.parametrize("name", MODULES)
def test_planted_permutations_are_found_again_and_go_back_into_pytorch(name):
    found, network, graph = known(name)
    before, other = found(), shuffle(graph, network.variables, 1)[0]
    found.module.load_state_dict(network.restore(other), strict=True)
    assert close(found(), before)  # PyTorch agrees that it is the same function
    same = nm.align(WeightMatching(), graph, [network.variables, other])[1]
    jax.tree.map(np.testing.assert_array_equal, network.variables, same)


@pytest.mark.parametrize("name", MODULES)
def test_a_step_of_np_merge_lowers_the_loss(name):
    found, network, _ = known(name)
    rng, x = np.random.default_rng(0), inputs(found)

    def moved(leaf):
        return leaf * rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

    stack = nm.stack_models([network.variables, jax.tree.map(moved, network.variables)])
    merge, target = nm.np_merge(), np.asarray(network.apply(network.variables, x))
    apply = (lambda v, x: network.train_apply(v, x)[0]) if name in STATISTICS else network.apply
    distance = nm.objectives.PerExample(lambda y, t: jnp.square(y - t).mean(tuple(range(1, y.ndim))))
    loss = nm.weight_space(merge, apply, distance)
    step = optax.normalize_by_update_norm(scale_factor=-0.01)  # along the gradient, as far for every network
    result = nm.fit(merge.init(stack), loss, stack, [(x, target)] * 2, step, steps=2)
    assert result.history.loss[1] < result.history.loss[0]
