"""Errors of the user's own network or loss, told as theirs: which of the two raised what, and on what."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from alignment.checks import channels_first, first_line
from alignment.graph import PyTree

LONGEST = 200
"""Characters of a message that tell the shapes of a tree."""


class UserError(ValueError):
    """What the user's code raised. Whoever calls that code says so, callers further out hand it on."""


def told(what: str, call: Callable[[], PyTree], hint: Callable[[], str] = str) -> PyTree:
    """What a call of the user's code returns.

    Args:
        what: is called, and on what.
        call: it.
        hint: what to do, to be said where it raises.

    Raises:
        UserError: where it raises anything, with that.
    """
    try:
        return call()
    except UserError:
        raise
    except Exception as error:  # whatever a user's code raises
        said, help_ = first_line(error), hint()
        raise UserError(f"{what} raised {said.removesuffix('.') if help_ else said}{help_}") from error


def told_of_network(apply: Callable[..., PyTree], variables: PyTree, inputs: PyTree) -> PyTree:
    """The outputs of a network. Raises UserError where it raises anything."""
    return told(f"the network, on inputs of {kinds_of(inputs)},", lambda: apply(variables, inputs))


def outputs_of(apply: Callable[..., PyTree], variables: PyTree, inputs: PyTree) -> PyTree:
    """The shapes and dtypes of the outputs of a network. Raises UserError where it raises anything."""
    what = f"the network, on inputs of {kinds_of(inputs)},"
    hint = functools.partial(channels_first, map(np.shape, jax.tree.leaves(inputs)))
    return told(what, lambda: jax.eval_shape(apply, variables, inputs), hint)


def of_pair(outputs: PyTree) -> str:
    """What outputs are, and what to do, if they come with new statistics, as training mode returns them; nothing of others."""
    if isinstance(outputs, tuple) and len(outputs) == 2 and isinstance(outputs[1], Mapping):
        return "a tuple (outputs, variables): drop the new statistics, lambda v, x: train_apply(v, x)[0]"
    return ""


def kinds_of(tree: PyTree) -> str:
    """The dtypes and shapes of arrays, of n examples each, in a line; of a tree of many, as of variables, the first."""
    text = str(jax.tree.map(_Kind, tree))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


class _Kind:
    """That of one array, without the quotes that text in a tree would have."""

    def __init__(self, x: Any):
        self.text = f"{getattr(x, 'dtype', type(x).__name__)} (n{''.join(f', {size}' for size in np.shape(x)[1:])})"

    def __repr__(self) -> str:
        return self.text
