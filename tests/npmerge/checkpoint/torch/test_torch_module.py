"""What becomes of a module: buffers, statistics, tied weights, modes, precisions, containers of inputs and outputs."""

import dataclasses
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npmerge as nm
from alignment import WeightMatching
from alignment.graph import flatten
from npmerge.checkpoint import torch_module
from tests.alignment.networks import shuffle
from tests.npmerge.checkpoint.torch.modules import fill, functional, nn, torch


class Everything(nn.Module):
    """Running statistics, tied weights, buffers that are stored and others, tensors of its own, new ones, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.dropout = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.middle, self.tied = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.tied.weight = self.middle.weight
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("unsaved", torch.linspace(0, 1, 5), persistent=False)
        self.own = torch.ones(5)

    def forward(self, x):
        h = torch.relu(self.norm(self.up(x * self.unsaved + self.own)))
        h = self.dropout(h + self.tied(torch.tanh(self.middle(h))))
        return h.mean(-1, keepdim=True) * self.scale + torch.arange(1.0, 4.0)


X = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)


def everything() -> nn.Module:
    torch.manual_seed(0)
    module = Everything()
    fill(module)
    return module


def of_torch(module, x=X) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(x)).float().numpy()


def test_variables_are_the_tensors_that_can_be_merged_by_their_names():
    module = everything()
    variables = torch_module(module, X).variables
    norm = [f"norm/{name}" for name in ("bias", "running_mean", "running_var", "weight")]
    assert list(flatten(variables)) == ["middle/weight", *norm, "scale", "up/bias", "up/weight"]
    np.testing.assert_array_equal(variables["up"]["weight"], module.up.weight.detach().numpy())


def test_evaluation_and_training_mode_are_those_of_pytorch_whatever_mode_the_module_is_in():
    module = everything().train()
    network = torch_module(module, X)
    assert module.training and module.norm.training and int(module.norm.num_batches_tracked) == 0
    np.testing.assert_allclose(network.apply(network.variables, X), of_torch(module.eval()), atol=1e-6)
    module.norm.train()
    outputs, new = jax.jit(network.train_apply)(network.variables, X)
    np.testing.assert_allclose(outputs, of_torch(module), atol=1e-6)
    np.testing.assert_allclose(new["norm"]["running_mean"], module.norm.running_mean, atol=1e-6)
    np.testing.assert_allclose(new["norm"]["running_var"], module.norm.running_var, atol=1e-6)  # unbiased
    np.testing.assert_array_equal(new["up"]["weight"], network.variables["up"]["weight"])


def test_what_is_restored_loads_strictly_and_computes_the_same():
    module = everything()
    network = torch_module(module, X)
    graph = nm.trace(network.apply, network.variables, X)
    assert [(node.size, node.group) for node in graph.nodes.values()] == [(8, "permutation")]
    other, _ = shuffle(graph, network.variables, 1)
    before, fresh = of_torch(module), Everything().eval()
    restored = network.restore(other)
    assert list(restored) == list(module.state_dict()) and restored._metadata == module.state_dict()._metadata
    assert restored["norm.num_batches_tracked"].dtype == torch.int64
    assert str(fresh.load_state_dict(restored, strict=True)) == "<All keys matched successfully>"
    np.testing.assert_allclose(of_torch(fresh), before, atol=1e-6)
    (_, back) = nm.align(WeightMatching(), graph, [network.variables, other])
    jax.tree.map(np.testing.assert_array_equal, network.variables, back)


def test_statistics_are_reset():
    module = everything()
    network = torch_module(module, X)
    found = nm.reset_statistics(network.train_apply, network.variables, [(X[:3], None), (X[3:], None)])
    module.norm.momentum = None  # the mean over batches
    module.norm.reset_running_stats()
    module.norm.train()
    for part in (X[:3], X[3:]):
        of_torch(module, part)
    np.testing.assert_allclose(found["norm"]["running_var"], module.norm.running_var, rtol=1e-5)
    again = torch_module(module, X)  # whose momentum is none, which takes the number of batches
    same = nm.reset_statistics(again.train_apply, again.variables, [(X[:3], None), (X[3:], None)])
    np.testing.assert_allclose(same["norm"]["running_mean"], module.norm.running_mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaders_and_tensors_of_pytorch_stand_where_batches_and_inputs_do(dtype):
    network = torch_module(everything(), X)
    x, y = torch.from_numpy(X).to(dtype).requires_grad_(), torch.tensor([0, 1, 2, 2, 1, 0])
    data = torch.utils.data.TensorDataset(x.detach(), y)
    loader = [*torch.utils.data.DataLoader(data, batch_size=3)]
    arrays = [(x[k : k + 3].detach().float().numpy(), y[k : k + 3].numpy()) for k in (0, 3)]

    def apply(variables, inputs):
        return network.apply(variables, inputs.astype(jnp.float32))

    assert nm.evaluate(apply, network.variables, loader) == nm.evaluate(apply, network.variables, arrays)
    again, same = (nm.reset_statistics(network.train_apply, network.variables, given) for given in (loader, arrays))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2), again, same)
    assert nm.trace(apply, network.variables, x).nodes == nm.trace(apply, network.variables, X).nodes


def test_modules_and_state_dicts_in_the_place_of_variables_are_told_what_to_give():
    module = everything()
    network = torch_module(module, X)
    graph = nm.trace(network.apply, network.variables, X)
    give = r"of PyTorch: give npmerge\.checkpoint\.torch_module\(module, example\)\.variables"
    with pytest.raises(ValueError, match=f"got the module Everything {give}"):
        nm.align(WeightMatching(), graph, [module, module])
    with pytest.raises(ValueError, match=f"got a state dict {give}"):
        nm.trace(network.apply, module.state_dict(), X)


def test_features_are_tapped():
    module = everything()
    network = torch_module(module, X)
    graph = nm.trace(network.apply, network.variables, X)
    (name,) = graph.nodes
    tapped = nm.capture(network.apply, graph, network.variables, X).nodes[name]
    assert tapped.shape == (6, 8)


def test_what_is_done_to_the_module_later_does_not_reach_the_functions():
    module = everything()
    network, before = torch_module(module, X), of_torch(module)
    with torch.no_grad():
        module.up.weight.zero_()
        module.unsaved.zero_()
        module.own.zero_()
    module.half()
    np.testing.assert_allclose(network.apply(network.variables, X), before, atol=1e-6)
    assert network.restore(network.variables)["up.weight"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_computed_in_float32_and_rounded_once(dtype):
    module = everything().to(dtype)
    network = torch_module(module, X)
    assert {x.dtype for x in jax.tree.leaves(network.variables)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(network.apply(network.variables, X), of_torch(module.float()), atol=1e-5)
    third = jax.tree.map(lambda x: jnp.full_like(x, 1 / 3), network.variables)
    restored = network.restore(third)["up.weight"]
    assert restored.dtype == dtype
    assert float(restored[0, 0]) == float(torch.tensor(1 / 3, dtype=torch.float32).to(dtype))


class Two(nn.Module):
    """Positional and named inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Linear(4, 3)

    def forward(self, x, y, mask=None):
        found = self.a(x) + self.b(y)
        return found if mask is None else found * mask


def test_inputs_are_one_several_or_named():
    module = Two()
    x, y = X, X[:, :4]
    wanted = (module.a(torch.tensor(x)) + module.b(torch.tensor(y))).detach().numpy()
    network = torch_module(module, (torch.tensor(x), torch.tensor(y)))
    np.testing.assert_allclose(network.apply(network.variables, (x, y)), wanted, atol=1e-6)
    named = {"x": x, "y": y, "mask": np.zeros((6, 3), np.float32)}
    assert not np.any(torch_module(module, named).apply(network.variables, named))
    shapes = torch_module(module, (jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(y.shape, y.dtype)))
    np.testing.assert_allclose(shapes.apply(network.variables, (x, y)), wanted, atol=1e-6)


@dataclasses.dataclass
class Output:
    logits: object
    loss: object = None


Pair = namedtuple("Pair", ["first", "second"])


class Returns(nn.Module):
    """What a function makes of what a layer gives."""

    def __init__(self, function) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(5, 3), function

    def forward(self, x):
        return self.function(self.layer(x))


@pytest.mark.parametrize(
    ("function", "structure", "output"),
    [
        (lambda y: Output(y), {"logits": 0}, "logits"),
        (lambda y: {"logits": y, "rest": [y, (y, None)], "none": None}, {"logits": 0, "rest": [0, (0, None)]}, "logits"),
        (lambda y: Pair(y, y + 1), {"first": 0, "second": 0}, "first"),
        (lambda y: Pair(y, y + 1), {"first": 0, "second": 0}, 0),
        (lambda y: (y, [y]), (0, [0]), 0),
    ],
)
def test_outputs_keep_their_containers_and_one_can_be_chosen(function, structure, output):
    module = Returns(function)
    network = torch_module(module, X)
    found = network.apply(network.variables, X)
    assert jax.tree.structure(found) == jax.tree.structure(structure)
    one = torch_module(module, X, output=output)
    np.testing.assert_allclose(one.apply(one.variables, X), module.layer(torch.tensor(X)).detach(), atol=1e-6)


def test_outputs_may_be_infinite_and_of_other_kinds():
    module = Returns(lambda y: (y.masked_fill(y > 0, -torch.inf), y > 0, y.argmax(-1), y.to(torch.complex64), y / (y - y)))
    network = torch_module(module, X)
    masked, positive, best, *_ = network.apply(network.variables, X)
    np.testing.assert_array_equal(np.isinf(masked), positive)
    assert best.shape == (6,)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm_is_pytorchs(groups):
    module = nn.GroupNorm(groups, 4)
    fill(module)
    x = np.random.default_rng(1).standard_normal((2, 4, 3, 2)).astype(np.float32)
    network = torch_module(module, x)
    np.testing.assert_allclose(network.apply(network.variables, x), of_torch(module, x), atol=1e-5)


def test_norms_without_scales_and_statistics_of_batches_alone():
    modules = nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4, affine=False)
    x = np.random.default_rng(1).standard_normal((3, 4, 2, 2)).astype(np.float32)
    for module in modules:
        network = torch_module(nn.Sequential(nn.Conv2d(4, 4, 1), module), x)
        assert jax.tree.leaves(network.variables)


def test_tensors_that_are_recomputed_before_each_call():
    with pytest.warns(FutureWarning, match="weight_norm"):
        module = torch.nn.utils.weight_norm(nn.Linear(5, 3))
    network = torch_module(module, X)
    assert set(network.variables) == {"bias", "weight_g", "weight_v"}
    doubled = {**network.variables, "weight_g": 2 * network.variables["weight_g"]}
    module.load_state_dict(network.restore(doubled), strict=True)
    np.testing.assert_allclose(network.apply(doubled, X), of_torch(module), atol=1e-6)
    parametrised = torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
    again = torch_module(parametrised, X)
    parametrised.load_state_dict(again.restore(again.variables), strict=True)
    assert functional.linear is torch.nn.functional.linear
