"""What is added to an error that a user's function raises while it is traced: how it was called, and what to do."""

import traceback
from typing import Any

import jax
import numpy as np

from alignment.checks import channels_first, kind_of
from alignment.graph import PyTree

LONGEST = 200
"""Characters that tell the inputs."""

OF_FLAX = "; of a Linen module give module.apply and all its variables, {'params': ...}"


def note_of(error: Exception, apply: Any, variables: PyTree, inputs: tuple) -> str:
    """Such as `apply was called as apply(dict, float32[2,8,8])`, and the remedies of two common slips."""
    called = f"apply({', '.join([kind_of(variables), *map(_kinds, inputs)])})"
    shapes = [np.shape(x) for x in jax.tree.leaves(inputs)]
    return f"apply was called as {called}{OF_FLAX if _is_flax(error, apply) else ''}{channels_first(shapes)}"


def _is_flax(error: Exception, apply: Any) -> bool:
    """Whether Flax raised it, or a module of Flax was called; Flax takes its own lines out of tracebacks."""
    kinds = *type(error).__mro__, *type(getattr(apply, "__self__", apply)).__mro__
    lines = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(name.startswith("flax.") for name in (*(kind.__module__ for kind in kinds), *lines))


def _kinds(tree: PyTree) -> str:
    text = str(jax.tree.map(_Kind, tree))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


class _Kind:
    """The dtype and shape of one array, without the quotes that text in a tree would have."""

    def __init__(self, x: Any):
        self.text = f"{getattr(x, 'dtype', type(x).__name__)}[{','.join(map(str, np.shape(x)))}]"

    def __repr__(self) -> str:
        return self.text
