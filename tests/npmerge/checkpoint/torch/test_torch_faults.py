"""What cannot be made functions of is told with the submodule, what was got, and what to do."""

import numpy as np
import pytest

from npmerge import stack_models
from npmerge.checkpoint import torch_environment, torch_module
from tests.npmerge.checkpoint.torch.modules import functional, nn, torch

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


class Does(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def network(function) -> nn.Module:
    """A layer, then a function of its outputs: the submodule 1."""
    return nn.Sequential(nn.Linear(4, 4), Does(function))


def loss_of_alignments(x):
    one = torch.tensor([1])
    return functional.ctc_loss(x.log_softmax(-1)[:, None], one[None], torch.tensor([3]), one)


def counted_in_place(x):
    y = x.clone()
    y.view(-1).add_(1)
    return y


VALUES = r"^1 \(Does\) asks for the values of tensors \(if, while, "
FAULTS = {
    "a branch": (lambda x: x if x.sum() > 0 else -x, VALUES),
    "a number": (lambda x: x * x.mean().item(), VALUES),
    "a mask": (lambda x: x[x > 0], VALUES),
    "NumPy": (lambda x: torch.from_numpy(np.asarray(x.detach().numpy())), VALUES),
    "an operator": (loss_of_alignments, r"^1 \(Does\) uses the operator aten::_ctc_loss\S*, which torchax \S+ does not have"),
    "random numbers": (lambda x: x + torch.rand(4), r"^outputs differ from PyTorch's by .* random in evaluation mode"),
    "another function": (counted_in_place, r"^outputs differ from PyTorch's by 1, .* or torchax \S+ computes one of"),
    "no tensor": (lambda x: object(), r"^the module returns object, which is no tensor: say which output is wanted"),
    "no tensor inside": (
        lambda x: {"y": x, "cache": [object()]},
        r"^the module returns object at 'cache/0', which is no tensor",
    ),
    "an error of its own": (lambda x: x.no_such_method(), r"^1 \(Does\) fails on float32 \(3, 4\) as inputs .*AttributeError"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_inside_the_module(name):
    function, message = FAULTS[name]
    with pytest.raises(ValueError, match=message):
        torch_module(network(function), X)


def test_an_example_of_the_wrong_shape_is_told_with_the_layer():
    with pytest.raises(ValueError, match=r"^0 \(Linear\) fails on float32 \(3, 5\) as inputs of the module: "):
        torch_module(network(torch.tanh), np.zeros((3, 5), np.float32))


def test_later_inputs_of_the_wrong_shape_are_told_too():
    made = torch_module(network(torch.tanh), X)
    with pytest.raises(ValueError, match=r"^0 \(Linear\) fails on float32 \(3, 5\) as inputs of the module: "):
        made.apply(made.variables, np.zeros((3, 5), np.float32))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.zeros((2, 8, 8, 1), np.float32),
            r"Conv2d fails on float32 \(2, 8, 8, 1\) .*; it expects \(examples, 1, \.\.\.\), channels",
        ),
        (torch.zeros((2, 1, 8, 8), dtype=torch.int32), r"Conv2d fails on int32 .*; give inputs in float32"),
    ],
)
def test_what_a_convolution_expects_is_told(x, message):
    with pytest.raises(ValueError, match=message):
        torch_module(nn.Conv2d(1, 2, 3), x)


def test_control_flow_of_training_alone_is_never_met():
    class Trains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            if self.training:
                raise RuntimeError("needs targets")
            return self.norm(x)

    made = torch_module(Trains().train(), X)
    assert made.train_apply(made.variables, X)[1]["norm"]["running_mean"].any()


def test_outputs_that_there_are_not():
    module = network(lambda x: {"logits": x, "loss": x.mean()})
    with pytest.raises(ValueError, match=r"^unknown output 'logit': the nearest is 'logits', expected one of logits, loss"):
        torch_module(module, X, output="logit")
    with pytest.raises(ValueError, match=r"^output 'logits' is asked for, and the module returns Tensor"):
        torch_module(network(torch.tanh), X, output="logits")


def test_variables_of_another_module_are_all_told():
    made = torch_module(network(torch.tanh), X)
    message = (
        r"^not the variables of the module: '0/bias': got no such leaf, expected \(4,\); '0/c': got \(2,\), expected no such"
    )
    with pytest.raises(ValueError, match=message):
        made.apply({"0": {"weight": made.variables["0"]["weight"], "c": np.zeros(2, np.float32)}}, X)
    with pytest.raises(ValueError, match=r"^not the variables of the module: '0/weight': got \(2, 4\), expected \(4, 4\)$"):
        made.restore({"0": {"weight": np.zeros((2, 4), np.float32), "bias": np.zeros(4, np.float32)}})
    with pytest.raises(ValueError, match=r"'d': got \(\), expected no such leaf and 2 more$"):
        made.restore(dict.fromkeys("bcdef", np.float32(0)))  # beside the weight and the bias that are not there
    with pytest.raises(ValueError, match=r"got a Stack; the models of a Stack are merged first"):
        made.restore(stack_models([made.variables, made.variables]))


def test_what_is_no_module_and_no_example():
    with pytest.raises(ValueError, match=r"^torch_module takes \(module, example\), got \(the class Linear, ndarray\)"):
        torch_module(nn.Linear, X)
    with pytest.raises(ValueError, match=r"^an example is an array, a tuple or a dictionary of arrays: got str$"):
        torch_module(nn.Linear(4, 4), "images")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, which advises against some of these
@pytest.mark.parametrize(
    ("wrapped", "message"),
    [
        (torch.compile, r"^OptimizedModule wraps a module, which is what is wanted: give its \._orig_mod$"),
        (
            lambda _: type("DataParallel", (nn.Module,), {})(),
            r"^DataParallel wraps a module, which is what is wanted: give its \.module$",
        ),
        (torch.jit.script, r"^RecursiveScriptModule is compiled by torch\.jit: give the module that it was made of$"),
        (lambda module: module.to("meta"), r"^'weight' of the module has no values: load them, or run a lazy module once$"),
        (lambda _: nn.LazyLinear(3), r"^'weight' of the module has no values: load them, or run a lazy module once$"),
    ],
)
def test_modules_that_wrap_others_or_have_no_values(wrapped, message):
    with pytest.raises(ValueError, match=message):
        torch_module(wrapped(nn.Linear(4, 4)), X)


def test_the_environment_is_made_once_and_left():
    made = torch_module(network(torch.tanh), X)
    made.apply(made.variables, X)
    assert torch_environment.torchax_environment() is torch_environment.torchax_environment()
    assert not torch_environment.torchax_environment().enabled
    assert type(torch.zeros(2) + 1) is torch.Tensor
