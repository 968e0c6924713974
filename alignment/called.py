"""What is added to an error that a user's function raises while it is traced: how it was called, and what to do."""

import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from alignment.checks import channels_first, kind_of
from alignment.graph import PyTree

LONGEST = 200
"""Characters that tell the inputs."""

OF_LINEN = "; of a Linen module give module.apply and all its variables, {'params': ...}"
OF_NNX = (
    "; of a module of NNX give what it is split into: definition, variables = nnx.split(module), and as apply "
    "lambda v, x: nnx.merge(definition, v)(x)"
)


def note_of(error: Exception, apply: Any, variables: PyTree, inputs: tuple) -> str:
    """Such as `apply was called as apply(dict, float32[2,8,8])`, and the remedies of common slips."""
    called = f"apply({', '.join([kind_of(variables), *map(_kinds, inputs)])})"
    shapes = [np.shape(x) for x in jax.tree.leaves(inputs)]
    return f"apply was called as {called}{slip_of(error, apply, variables)}{channels_first(shapes)}"


def slip_of(error: Exception, apply: Any, variables: PyTree) -> str:
    """What to give instead of a module of NNX, or of what Linen refused; nothing of others."""
    owners = [getattr(apply, "__self__", apply), variables]
    if any(kind.__name__ == "Module" and kind.__module__.startswith("flax.nnx") for x in owners for kind in type(x).__mro__):
        return OF_NNX
    as_asked = getattr(apply, "__name__", "") == "apply" and isinstance(variables, Mapping) and "params" in variables
    return OF_LINEN if _is_linen(error, owners[0]) and not as_asked else ""


def _is_linen(error: Exception, owner: Any) -> bool:
    """Whether Flax raised it, or a module of Flax was called; Flax takes its own lines out of tracebacks."""
    kinds = *type(error).__mro__, *type(owner).__mro__
    lines = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = [name for name in (*(kind.__module__ for kind in kinds), *lines) if name.startswith("flax.")]
    return bool(found) and not any(name.startswith("flax.nnx") for name in found)


def _kinds(tree: PyTree) -> str:
    return in_a_line(tree, lambda shape: f"[{','.join(map(str, shape))}]")


def in_a_line(tree: PyTree, shown: Callable[[tuple[int, ...]], str]) -> str:
    """The dtypes and shapes of the arrays of a tree; of a tree of many, as of variables, the first.

    Args:
        tree: of arrays.
        shown: how a shape is written.
    """
    text = str(jax.tree.map(lambda x: _Text(f"{getattr(x, 'dtype', type(x).__name__)}{shown(np.shape(x))}"), tree))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


class _Text(str):
    """Without the quotes that text in a tree has."""

    __slots__ = ()
    __repr__ = str.__str__
