"""Without PyTorch, or with one that torchax does not know, what to install is said."""

import importlib
import sys

import pytest

from npmerge.checkpoint import torch_module
from npmerge.checkpoint.torch_environment import imported


def test_torch_that_is_missing_is_told_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ValueError, match=r'^modules of PyTorch need .* torch, .* not installed: pip install "npmerge\[torch\]"$'
    ):
        torch_module(None, None)


def test_a_version_that_does_not_work_is_told_with_the_command(monkeypatch):
    def fails(name):
        raise AttributeError("The underlying op of 'aten.prod' has no overload name 'dim_Dimname'")

    monkeypatch.setattr(importlib, "import_module", fails)
    monkeypatch.setattr(importlib.metadata, "version", {"torch": "2.15.0", "torchax": "0.0.13"}.__getitem__)
    with pytest.raises(ValueError, match=r"^torchax 0\.0\.13 with torch 2\.15\.0 cannot be imported \(AttributeError: .*dim_D"):
        imported("torchax.tensor")
    with pytest.raises(ValueError, match=r'pip install "npmerge\[torch\]" installs versions that work$'):
        imported("torchax.tensor")
