"""Variables of Flax NNX, Linen, Equinox and Haiku by path, and back into the same containers."""

import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from alignment.checks import kind_of
from alignment.graph import PyTree, path_name
from npmerge.checkpoint.stored import StoredModel
from npmerge.checkpoint.tensors import tensors_of

T = TypeVar("T")


def variables_of(model: PyTree) -> dict[str, Any]:
    """The arrays of a model by path, such as "params/Dense_0/kernel", "layers/0/weight" or "mlp/~/linear_0/w".

    Args:
        model: an NNX module or state, Linen's variables, an Equinox module, Haiku's parameters or state, or any tree. What is
            no array, such as an activation function, is left out. Keys of `jax.random` are given as their bits.

    Raises:
        ValueError: two arrays with one path, or no array at all.
    """
    found: dict[str, Any] = {}
    for path, leaf in _leaves(model)[0]:
        if not _is_array(leaf):
            continue
        if path in found:
            raise ValueError(f"two arrays have the path {path!r}: keys must not hold the separator '/'")
        found[path] = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if not found:
        raise ValueError(f"expected a model with arrays, got {kind_of(model)} without any")
    return found


def with_variables(model: T, variables: Mapping[str, Any] | StoredModel) -> T:
    """The model with other arrays: a new one of the same kind, the given one stays as it is.

    Args:
        model: as for `variables_of`. Its arrays may be abstract, as `jax.eval_shape` makes them.
        variables: an array for each path of `variables_of`, of any dtype, which is kept; or a model on disk with these names.

    Raises:
        ValueError: all paths that are missing, unexpected or have another shape, at once.
    """
    given: Mapping[str, Any] = tensors_of(variables) if isinstance(variables, StoredModel) else dict(variables)
    leaves, rebuild = _leaves(model)
    _check(variables_of(model), given)
    return rebuild([_replaced(leaf, given[path]) if _is_array(leaf) else leaf for path, leaf in leaves])


def _leaves(model: Any) -> tuple[list[tuple[str, Any]], Any]:
    """The leaves with their paths, and what puts other leaves into their place."""
    nnx: Any = sys.modules.get("flax.nnx")  # where it has not been imported nothing can be of it
    if nnx and isinstance(model, nnx.Module):
        definition, state = nnx.split(model)
        leaves, rebuild = _leaves(state)
        return leaves, lambda new: nnx.merge(definition, rebuild(new))
    if nnx and isinstance(model, nnx.State):
        flat = list(nnx.to_flat_state(model))
        leaves = [("/".join(map(str, path)), variable.get_value()) for path, variable in flat]
        return leaves, lambda new: nnx.from_flat_state([(p, v.replace(x)) for (p, v), x in zip(flat, new, strict=True)])
    paths, structure = jax.tree_util.tree_flatten_with_path(model)
    return [(path_name(path), leaf) for path, leaf in paths], lambda new: jax.tree.unflatten(structure, new)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _replaced(old: Any, new: Any) -> Any:
    if _is_key(old):
        return jax.random.wrap_key_data(jax.numpy.asarray(new), impl=jax.random.key_impl(old))
    return np.asarray(new) if isinstance(old, np.ndarray | np.generic) else jax.numpy.asarray(new)


def _check(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    faults = [f"{path!r} is missing" for path in own if path not in given]
    faults += [f"{path!r} is unexpected" for path in given if path not in own]
    faults += [
        f"{path!r} has the shape {tuple(np.shape(x))}, expected {tuple(own[path].shape)}"
        for path, x in given.items()
        if path in own and tuple(np.shape(x)) != tuple(own[path].shape)
    ]
    if faults:
        raise ValueError(f"the variables do not fit the model: {'; '.join(faults)}")
