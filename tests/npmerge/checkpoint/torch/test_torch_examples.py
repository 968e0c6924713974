"""The examples of docstrings and the guide that the other tests skip without PyTorch."""

import numpy as np
import pytest

from npmerge import checkpoint
from tests import examples
from tests.docs import pages
from tests.npmerge.checkpoint.torch.modules import nn, torch


@pytest.mark.parametrize("name", ["TorchNetwork", "torch_module"])
def test_the_example_runs(name):
    torch.manual_seed(0)
    examples.check(f"npmerge.checkpoint.{name}", getattr(checkpoint, name))


def test_the_example_of_the_guide_runs():
    (example,) = [e for e in pages.examples("any-network") if "torch_module" in e]
    torch.manual_seed(0)
    modules = [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)) for _ in range(2)
    ]
    kernels = [module[0].weight.detach().clone() for module in modules]
    images = np.random.default_rng(0).standard_normal((8, 3, 4, 4)).astype(np.float32)
    pages.run(example, {"modules": modules, "images": images, "batches": [(images, None)]})
    merged = modules[0].eval()
    assert not torch.equal(merged[0].weight, (kernels[0] + kernels[1]) / 2)  # aligned first
    with torch.no_grad():
        features = merged[0](torch.from_numpy(images))
    np.testing.assert_allclose(merged[1].running_mean, features.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
