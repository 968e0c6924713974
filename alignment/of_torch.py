"""Values of PyTorch where arrays or variables are expected: tensors are taken, modules and their state are told by name."""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def as_arrays(tree: Any) -> Any:
    """The tree with its tensors of PyTorch, on any device, as NumPy arrays; all else as it is."""
    torch: Any = sys.modules.get("torch")
    if torch is None:  # then there are none
        return tree

    def array(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        x = x.detach().cpu()
        return x.view(torch.int16).numpy().view(jnp.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()

    return jax.tree.map(array, tree)


def check_no_torch(variables: Any) -> None:
    """Raise ValueError for a module of PyTorch or its state dict in the place of variables: what gives those."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    state = isinstance(variables, Mapping) and any(isinstance(x, torch.Tensor) for x in variables.values())
    if state or isinstance(variables, torch.nn.Module):
        got = "a state dict" if state else f"the module {type(variables).__name__}"
        give = "npmerge.checkpoint.torch_module(module, example).variables"
        raise ValueError(f"variables are expected, got {got} of PyTorch: give {give}")
