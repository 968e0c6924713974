"""Several models side by side, as one tree."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignment.checks import check_list, kind_of, other_depth, other_spelling
from alignment.finite import check_finite
from alignment.graph import PyTree, flatten, path_name


class Stack(NamedTuple):
    """The models to merge, side by side. `stack_models` makes and checks one.

    Attributes:
        params: a tree with leaves of shape (models, ...).
        base: the model that they were fine-tuned from, a tree with leaves (...); None if there is none.

    Example:
        >>> stack = nm.Stack({"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}, base={"w": jnp.zeros(2)})
        >>> stack.size
        2
        >>> print(*(model["w"] for model in stack.models()))
        [1. 2.] [3. 4.]
    """

    params: PyTree
    base: PyTree | None = None

    @property
    def size(self) -> int:
        """Number of models."""
        return jax.tree.leaves(self.params)[0].shape[0]

    def models(self) -> list[PyTree]:
        """The models one by one."""
        return [jax.tree.map(lambda x, k=k: x[k], self.params) for k in range(self.size)]

    def __repr__(self) -> str:
        """What it holds in a line: all numbers of all models would fill pages."""
        shapes = [tuple(getattr(x, "shape", ())) for x in jax.tree.leaves(self.params)]
        models, count = max((shape[0] for shape in shapes if shape), default=0), sum(math.prod(s[1:]) for s in shapes)
        base = "no base" if self.base is None else "a base"
        return f"Stack({models} models of {len(shapes)} tensors and {count:,} parameters each, {base})"


def check_is_stack(stack: Any) -> None:
    """Raise ValueError for anything but a stack."""
    if not isinstance(stack, Stack):
        raise ValueError(f"a merge needs the stack of models it merges: got {kind_of(stack)}, use stack_models(models)")


def check_stack(stack: Any) -> Stack:
    """The stack itself. Raises ValueError for anything else, and for tensors of other numbers of models or not the base's."""
    check_is_stack(stack)
    of_one = stack.params if stack.base is None else stack.base
    shapes, like = ({path: np.shape(x) for path, x in flatten(tree).items()} for tree in (stack.params, of_one))
    for path in [*shapes, *like]:
        got, one = shapes.get(path), like.get(path)
        if got is None or one is None or got != (stack.size, *(one[1:] if stack.base is None else one)):
            of = "as all leaves have" if stack.base is None else f"of a base with {one}"
            raise ValueError(
                f"the stack has {got} at {path!r}: expected {stack.size} models {of}, use stack_models(models, base)"
            )
    return stack


def stack_models(models: Sequence[PyTree], base: PyTree | None = None) -> Stack:
    """Put models of one structure side by side.

    Args:
        models: trees of floating-point arrays with the same paths, shapes and dtypes.
        base: the model they were fine-tuned from, for the methods that need it.

    Raises:
        ValueError: no models, trees that differ (the path and both shapes), an integer leaf, a NaN or infinity (named).

    Example:
        >>> stack = nm.stack_models([{"w": jnp.zeros((2, 3))}, {"w": jnp.ones((2, 3))}])
        >>> stack.size, stack.params["w"].shape
        (2, (2, 2, 3))
        >>> nm.stack_models([{"w": jnp.zeros(2)}, {"w": jnp.zeros(3)}])
        Traceback (most recent call last):
            ...
        ValueError: model 1 differs from model 0 at 'w': got float32[3], expected float32[2]
    """
    check_models(models, base)
    return Stack(side_by_side(tuple(models)), base)


def check_models(models: Sequence[PyTree], base: PyTree | None = None) -> None:
    """Raise ValueError unless `stack_models` can put these side by side."""
    check_list(models)
    if not models:
        raise ValueError("nothing to merge: got an empty list of models")
    named = [(f"model {k}", model) for k, model in enumerate(models)] + ([("the base", base)] if base is not None else [])
    for name, model in named:
        _check_same(models[0], model, name)
        _check_floating(model, name)
        check_finite(model, name)


@jax.jit
def side_by_side(models: tuple[PyTree, ...]) -> PyTree:
    """Trees of one structure as one tree with leaves (models, ...), unchecked."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)


def _check_same(reference: PyTree, model: PyTree, name: str) -> None:
    ours, theirs = (
        {path: (np.shape(x), str(jnp.result_type(x))) for path, x in flatten(tree).items()} for tree in (reference, model)
    )
    if ours.keys() != theirs.keys() and (depth := other_depth(theirs, ours)):
        raise ValueError(f"{name} differs from model 0 in {depth}")
    for path in [*ours, *theirs]:
        expected, got = (f"{t[path][1]}{list(t[path][0])}" if path in t else "no such leaf" for t in (ours, theirs))
        if expected != got:
            raise ValueError(
                f"{name} differs from model 0 at {path!r}: got {got}, expected {expected}{other_spelling(theirs, ours)}"
            )
    if str(jax.tree.structure(reference)) != str(jax.tree.structure(model)):
        raise ValueError(f"{name} differs from model 0 in its containers: {_containers(reference, model) or 'their order'}")
    if not ours:
        raise ValueError(f"{name} has no leaves: expected a tree of arrays")


def _containers(expected: PyTree, got: PyTree, path: tuple = ()) -> str:
    """What the first containers of two trees are that are of different classes, and where; empty if none are."""
    if type(expected) is not type(got):
        where = f" at {path_name(path)!r}" if path else ""
        return f"got {kind_of(got)}{where}, expected {kind_of(expected)}"
    inside = [jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y, x=x: y is not x)[0] for x in (expected, got)]
    pairs = [(key, a, b) for (key, a), (_, b) in zip(*inside, strict=False) if key]  # a leaf is inside itself, at no key
    return next((found for key, a, b in pairs if (found := _containers(a, b, (*path, *key)))), "")


def _check_floating(model: PyTree, name: str) -> None:
    for path, leaf in flatten(model).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"{name} has a leaf of dtype {jnp.result_type(leaf)} at {path!r}: only floating-point leaves can be merged, "
                "split the others off first"
            )
