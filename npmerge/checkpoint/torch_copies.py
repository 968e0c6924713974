"""A module of PyTorch taken apart: its structure without numbers, and its tensors as arrays by name."""

import copy
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignment.names import is_statistic

MOMENTUM = 0.1
"""Of statistics that have none: `reset_statistics` comes to the same with any."""

WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
"""Modules that compile or spread another one, and where they have it."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What a module is made of, where no later change of it reaches.

    Attributes:
        skeleton: a copy of the module in float32, on the device "meta".
        shapes: of what can be merged, the floating-point tensors of its state dictionary, by name; of tied ones the first.
        tied: for each other name of such a tensor the one that `shapes` has.
        constants: all other tensors, by name: integers, and buffers that the state dictionary leaves out.
        stored: the state dictionary, with shapes and dtypes alone of what can be merged.
    """

    skeleton: Any
    shapes: Mapping[str, jax.ShapeDtypeStruct]
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
    """The parts of a module, which is left as it is. Raises ValueError for wrappers of modules and tensors without values."""
    _check_plain(module)
    stored = module.state_dict(keep_vars=True)
    named = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    first: dict[int, str] = {}
    for name, tensor in named.items():
        if name in stored and (tensor.is_floating_point() or tensor.is_complex()):
            first.setdefault(id(tensor), name)
    return Parts(
        skeleton=_skeleton(module, named.values()),
        shapes={name: shape_of(named[name]) for name in first.values()},
        tied={name: first[id(t)] for name, t in named.items() if id(t) in first and first[id(t)] != name},
        constants={name: array_of(t) for name, t in named.items() if id(t) not in first},
        stored=_detached(stored, {id(t) for t in named.values() if id(t) in first}),
    )


def _check_plain(module: Any) -> None:
    import torch

    kind = type(module).__name__
    if kind in WRAPPERS:
        raise ValueError(f"{kind} wraps a module, which is what is wanted: give its .{WRAPPERS[kind]}")
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            where = f" at {name!r}" if name else ""
            raise ValueError(f"{type(part).__name__}{where} is compiled by torch.jit: give the module that it was made of")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise ValueError(f"{name!r} of the module has no values: load them, or run a lazy module once")


def _detached(stored: OrderedDict, variables: Collection[int]) -> OrderedDict:
    """The state dictionary for itself, where variables stand without numbers."""
    own = copy.copy(stored)
    for name, value in stored.items():
        is_tensor = hasattr(value, "detach")
        own[name] = (
            value.detach().to("meta" if id(value) in variables else "cpu", copy=True) if is_tensor else copy.deepcopy(value)
        )
    return own


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
    for part in filter(keeps_statistics, skeleton.modules()):
        if getattr(part, "momentum", 0) is None:  # a mean over all batches so far: their number is a value
            part.momentum = MOMENTUM
    _set_as_function(getattr(skeleton, "config", None))
    return skeleton


def _set_as_function(config: Any) -> None:
    """Of models of transformers: keys and values are no outputs, and no loop goes over the experts that were chosen."""
    if getattr(config, "use_cache", False):
        config.use_cache = False
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "batched_mm"


def _single(dtype: Any) -> Any:
    """Float32 for every floating-point type."""
    import torch

    return torch.float32 if dtype.is_floating_point else dtype


def shape_of(tensor: Any) -> jax.ShapeDtypeStruct:
    """What `array_of` gives of a tensor, without its numbers."""
    return jax.ShapeDtypeStruct(tuple(tensor.shape), array_of(tensor.new_zeros((), device="cpu")).dtype)


def array_of(tensor: Any) -> Array:
    """A tensor on any device as an array, floating-point numbers in float32, 64-bit integers in 32 bits."""
    x = tensor.detach().to("cpu", _single(tensor.dtype)).resolve_conj().numpy()
    return jnp.asarray(x.astype(np.int32) if x.dtype == np.int64 else x)


def _tensor_of(array: Array, dtype: Any) -> Any:
    import torch

    x = np.asarray(array)
    real = jnp.issubdtype(x.dtype, jnp.floating)
    return torch.from_numpy(x.astype(np.float32) if real else x.copy()).to(dtype)


def keeps_statistics(part: Any) -> bool:
    """Whether a submodule has running statistics of its own."""
    return any(is_statistic(name) for name, buffer in part.named_buffers(recurse=False))
