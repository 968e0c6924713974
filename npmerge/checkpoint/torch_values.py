"""What goes into a module of PyTorch and what comes out, as trees of arrays."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.checks import kind_of, unknown
from alignment.graph import PyTree, flatten
from npmerge.checkpoint.torch_copies import array_of

Wanted = str | int | tuple[str, ...] | None
"""One of several outputs: its name or place, or names of which the first that there is; None for all."""

NUMBERS = bool | int | float | complex | np.ndarray | np.generic | jax.Array


def as_inputs(example: Any) -> PyTree:
    """Example inputs as arrays or shapes: one, a tuple of positional ones or a dictionary of named ones. Raises ValueError."""
    import torch

    def leaf(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return array_of(value)
        if isinstance(value, jax.ShapeDtypeStruct | NUMBERS):
            return value if isinstance(value, jax.ShapeDtypeStruct) else jnp.asarray(value)
        raise ValueError(f"an example is an array, a tuple or a dictionary of arrays: got {kind_of(value)}")

    return jax.tree.map(leaf, dict(example) if isinstance(example, Mapping) else example)


def arguments(inputs: PyTree) -> tuple[tuple, dict[str, Any]]:
    """Inputs as positional and named arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def in_words(inputs: PyTree) -> str:
    """Inputs by their shapes and dtypes."""
    leaves = {path: f"{x.dtype} {tuple(x.shape)}" for path, x in flatten(inputs).items() if hasattr(x, "dtype")}
    return ", ".join(f"{path} {text}" if path else text for path, text in leaves.items())


def of_outputs(outputs: Any, wanted: Wanted) -> PyTree:
    """What a module returns as a tree of arrays, or one part of it.

    Raises:
        ValueError: a part that there is not (the nearest is named), and what is no tensor (where it stands).
    """
    if wanted is None:
        return _arrays(outputs, "")
    placed = isinstance(wanted, int) and isinstance(outputs, tuple | list)
    parts = dict(enumerate(outputs)) if placed else _contained(outputs)
    if isinstance(wanted, tuple):
        wanted = next((name for name in wanted if name in (parts or ())), wanted[0])
    if parts is None:
        raise ValueError(f"output {wanted!r} is asked for, and the module returns {kind_of(outputs)}")
    if wanted not in parts:
        raise ValueError(unknown("output", wanted, list(map(str, parts))))
    return _arrays(parts[wanted], str(wanted))


def _contained(outputs: Any) -> dict[Any, Any] | None:
    """What a container holds, by name or place; None for other things."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs, tuple) and hasattr(outputs, "_asdict"):
        return outputs._asdict()
    if isinstance(outputs, tuple | list):
        return dict(enumerate(outputs))
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        return {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    return None


def _arrays(outputs: Any, path: str) -> PyTree:
    import torch

    if isinstance(outputs, torch.Tensor):
        return outputs.jax() if hasattr(outputs, "jax") else array_of(outputs)
    if outputs is None or isinstance(outputs, NUMBERS):
        return outputs
    parts = _contained(outputs)
    if parts is None:
        place = f" at {path!r}" if path else ""
        raise ValueError(
            f"the module returns {kind_of(outputs)}{place}, which is no tensor: say which output is wanted (output=...)"
        )
    found = {key: _arrays(x, f"{path}/{key}".strip("/")) for key, x in parts.items()}
    if isinstance(outputs, list | tuple) and not hasattr(outputs, "_asdict"):
        return list(found.values()) if isinstance(outputs, list) else tuple(found.values())
    return {key: x for key, x in found.items() if x is not None}
