"""The examples in docstrings that the other tests skip without PyTorch."""

import pytest

from npmerge import checkpoint
from tests import examples
from tests.npmerge.checkpoint.torch.modules import torch


@pytest.mark.parametrize("name", ["TorchNetwork", "torch_module"])
def test_the_example_runs(name):
    torch.manual_seed(0)
    examples.check(f"npmerge.checkpoint.{name}", getattr(checkpoint, name))
