"""A module of PyTorch taken apart: its structure without numbers, and its tensors as arrays by name."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignment.names import is_statistic


@dataclass(frozen=True, eq=False)
class Parts:
    """What a module is made of, where no later change of it reaches.

    Attributes:
        skeleton: a copy of the module in float32, on the device "meta".
        variables: the tensors of its state dictionary as arrays, by name; of tied ones the first.
        tied: for each other name of such a tensor the one that `variables` has.
        constants: buffers that the state dictionary leaves out, by name.
        stored: the state dictionary as shapes and dtypes alone, and what it holds besides tensors.
    """

    skeleton: Any
    variables: Mapping[str, Array]
    tied: Mapping[str, str]
    constants: Mapping[str, Array]
    stored: Mapping[str, Any]

    def state_dict(self, arrays: Mapping[str, Array]) -> Mapping[str, Any]:
        """A state dictionary of the module with these numbers, rounded once to its dtypes, on the CPU."""
        filled = copy.copy(self.stored)  # a dictionary with the versions of its parts
        for name, like in self.stored.items():
            if (source := self.tied.get(name, name)) in arrays:
                filled[name] = _tensor_of(arrays[source], like.dtype)  # type: ignore[index]
        return filled


def taken_apart(module: Any) -> Parts:
    """The parts of a module, which is left as it is."""
    stored = module.state_dict(keep_vars=True)
    named = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    first: dict[int, str] = {}
    for name, tensor in named.items():
        if name in stored:
            first.setdefault(id(tensor), name)
    return Parts(
        skeleton=_skeleton(module, named.values()),
        variables={name: array_of(named[name]) for name in first.values()},
        tied={name: first[id(t)] for name, t in named.items() if id(t) in first and first[id(t)] != name},
        constants={name: array_of(t) for name, t in named.items() if id(t) not in first},
        stored=_without_numbers(stored, named),
    )


def _without_numbers(stored: OrderedDict, named: Mapping[str, Any]) -> OrderedDict:
    shapes = copy.copy(stored)
    for name, value in stored.items():
        shapes[name] = value.detach().to("meta") if name in named else copy.deepcopy(value)
    return shapes


def _skeleton(module: Any, tensors: Any) -> Any:
    """A copy whose parameters and buffers hold no numbers; tensors that are neither are copied."""
    import torch

    memo: dict[int, Any] = {}
    for tensor in tensors:
        empty = torch.empty(tensor.shape, dtype=_single(tensor.dtype), device="meta")
        is_weight = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, torch.Tensor):
                memo.setdefault(id(value), value.detach().to("cpu", _single(value.dtype), copy=True))
    skeleton = copy.deepcopy(module, memo)
    if getattr(getattr(skeleton, "config", None), "use_cache", False):  # transformers: keys and values are no outputs
        skeleton.config.use_cache = False
    return skeleton


def _single(dtype: Any) -> Any:
    """Float32 for every floating-point type."""
    import torch

    return torch.float32 if dtype.is_floating_point else dtype


def array_of(tensor: Any) -> Array:
    """A tensor on any device as an array, floating-point numbers in float32; of one without numbers its shape."""
    x = tensor.detach()
    if x.is_meta:
        return jax.ShapeDtypeStruct(tuple(x.shape), array_of(x.new_zeros((), device="cpu")).dtype)  # type: ignore[return-value]
    x = x.to("cpu", _single(x.dtype)).numpy()
    return jnp.asarray(x.astype(np.int32) if x.dtype == np.int64 else x)


def _tensor_of(array: Array, dtype: Any) -> Any:
    import torch

    x = np.asarray(array)
    real = jnp.issubdtype(x.dtype, jnp.floating)
    return torch.from_numpy(x.astype(np.float32) if real else x.copy()).to(dtype)


def keeps_statistics(part: Any) -> bool:
    """Whether a submodule has running statistics of its own."""
    return any(is_statistic(name) for name, buffer in part.named_buffers(recurse=False))
