"""Models whose leaves are read one by one, when they are asked for."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.checks import kind_of
from alignment.graph import PyTree, flatten
from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.stored import Entry, StoredModel

Shapes = Mapping[str, jax.ShapeDtypeStruct]


class Leaves:
    """The leaves of a model on the host, by path.

    Args:
        name: what messages call the model.
        model: a tree whose leaves are arrays, or functions without arguments that return one; or a stored model whose tensors
            are named by paths, as those of `npmerge.checkpoint.save` are.
        shapes: that its leaves must have, by path.

    Raises:
        ValueError: a leaf that is missing, unexpected, or of another shape or dtype, as far as that is known without reading.
    """

    def __init__(self, name: str, model: PyTree | StoredModel, shapes: Shapes):
        self.name, self.shapes = name, shapes
        stored = isinstance(model, StoredModel)
        self._leaves = {path: functools.partial(_read, model, path) for path in model.entries} if stored else flatten(model)
        for path in [*shapes, *self._leaves]:
            known = path in shapes and path in self._leaves
            self._check(path, self._described(model.entries[path] if stored and known else self._leaves.get(path)))

    def __call__(self, paths: Iterable[str]) -> dict[str, np.ndarray]:
        """Leaves as NumPy arrays. Raises ValueError for NaN or infinity, or a shape or dtype that is not as expected."""
        found = {}
        for path in paths:
            leaf = self._leaves[path]
            found[path] = np.asarray(leaf() if callable(leaf) else leaf)
            self._check(path, self._described(found[path]))
            if bad := int((~np.isfinite(found[path])).sum()):
                raise ValueError(f"{self.name} has {bad} non-finite values of {found[path].size} in {path!r}")
        return found

    def _described(self, leaf: Any) -> str | None:
        """Shape and dtype of a leaf as messages write them, None for one whose are not known yet."""
        if leaf is None:
            return "no such leaf"
        if isinstance(leaf, Entry):
            return f"{DTYPES[leaf.dtype]}{list(leaf.shape)}"
        return None if callable(leaf) else f"{jnp.result_type(leaf)}{list(np.shape(leaf))}"

    def _check(self, path: str, got: str | None) -> None:
        expected = f"{self.shapes[path].dtype}{list(self.shapes[path].shape)}" if path in self.shapes else "no such leaf"
        if got not in (None, expected):
            raise ValueError(f"{self.name} does not fit at {path!r}: got {got}, expected {expected}")


def shapes_of(model: PyTree | StoredModel, like: PyTree | None) -> PyTree:
    """The variables of a network as `jax.ShapeDtypeStruct`: `like`, or those of a model that is a tree of arrays.

    Raises:
        ValueError: a model that is none, without `like`; a leaf that is not floating-point (its path).
    """
    given = model if like is None else like
    leaves = [None] if isinstance(given, StoredModel) else jax.tree.leaves(given)
    if any(leaf is None or callable(leaf) for leaf in leaves):
        raise ValueError(
            f"the shapes of the variables are not known from {kind_of(model)}: give like=, a tree of arrays or "
            "jax.ShapeDtypeStruct such as jax.eval_shape(init, key)"
        )
    for path, leaf in flatten(given).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"the variables have a leaf of dtype {jnp.result_type(leaf)} at {path!r}: only floating-point leaves can be "
                "merged, split the others off first"
            )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), given)


def _read(model: StoredModel, path: str) -> np.ndarray:
    entry = model.entries[path]
    return model.read(path).view(DTYPES[entry.dtype]).reshape(entry.shape)
