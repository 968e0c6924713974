"""Nested containers as JSON, so that a flat file of named arrays gives back the tree that was saved."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.tree_util import DictKey, KeyEntry, SequenceKey

from alignment.graph import PyTree, path_name

DTYPES = (
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("bool", "float16", "bfloat16", "float32", "float64", "complex64"),
)
"""What safetensors and NumPy both can hold."""


def take_apart(tree: PyTree) -> tuple[Any, dict[str, np.ndarray]]:
    """The containers of a tree as JSON and its arrays by path.

    An array stands in the JSON as its path, a dictionary as `{"dict": [[key, ...], ...]}`, which tells the key 0 from the key
    "0", a list as `{"list": [...]}`, a tuple as `{"tuple": [...]}`.

    Raises:
        ValueError: naming the path, for a leaf that is no array, another container, a key that is neither text nor an
            integer, or two leaves with one path.
    """
    arrays: dict[str, np.ndarray] = {}

    def visit(node: PyTree, path: tuple[KeyEntry, ...]) -> Any:
        if node is None:
            return None
        if type(node) is dict:
            return {"dict": [[_checked(key, path), visit(x, (*path, DictKey(key)))] for key, x in node.items()]}
        if type(node) in (list, tuple):
            return {type(node).__name__: [visit(x, (*path, SequenceKey(k))) for k, x in enumerate(node)]}
        name = path_name(path)
        if name in arrays:
            raise ValueError(f"two leaves have the path {name!r}: keys must not hold the separator '/'")
        arrays[name] = _array(name, node)
        return name

    return visit(tree, ()), arrays


def put_together(containers: Any, arrays: Mapping[str, np.ndarray]) -> PyTree:
    """The tree that `take_apart` took apart. Raises KeyError, TypeError or ValueError for JSON that it has not written."""
    if containers is None:
        return None
    if isinstance(containers, str):
        return arrays[containers]
    ((kind, items),) = containers.items()
    if kind == "dict":
        return {key: put_together(x, arrays) for key, x in items}
    return {"list": list, "tuple": tuple}[kind](put_together(x, arrays) for x in items)


def _checked(key: Any, path: tuple[KeyEntry, ...]) -> Any:
    if isinstance(key, str) or type(key) is int:
        return key
    raise ValueError(f"cannot save the key {key!r} in {path_name(path)!r}: expected text or an integer")


def _instead(value: Any) -> str:
    """What to give for what people try to save, by what it is like: no library is imported for it."""
    if hasattr(value, "theta"):
        return ": give its theta, or the network that the merge makes of it, merge.apply(result.theta, stack)"
    if hasattr(value, "params") and hasattr(value, "base"):
        return ": give one of its models()"
    classes = {f"{c.__module__.partition('.')[0]}.{c.__name__}" for c in type(value).__mro__}
    if "flax.AxisMetadata" in classes:
        return ": give flax.linen.meta.unbox(variables)"
    if "flax.Module" in classes:
        return ": give nnx.to_pure_dict(nnx.state(module))"
    return ": give nnx.to_pure_dict(state)" if "flax.State" in classes else ""


def _array(name: str, leaf: Any) -> np.ndarray:
    if not isinstance(leaf, np.ndarray | np.generic | jax.Array):
        raise ValueError(
            f"cannot save {repr(name) if name else 'this'}: got {type(leaf).__name__}, expected an array, or a dict, list or "
            f"tuple of them{_instead(leaf)}"
        )
    if str(leaf.dtype) not in DTYPES:
        raise ValueError(f"cannot save {name!r}: got dtype {leaf.dtype}, expected one of {', '.join(DTYPES)}")
    return np.asarray(leaf, order="C")  # safetensors writes the buffer as it lies


def nested(flat: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Dictionaries in dictionaries, by the names of what they hold, whose parts the separator keeps apart."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *above, last = name.split(separator)
        inner = tree
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = leaf
    return tree
