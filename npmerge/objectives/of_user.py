"""Errors of the user's own network or loss, told as theirs: which of the two raised what, and on what."""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from alignment.called import in_a_line, slip_of
from alignment.checks import channels_first, first_line, kind_of
from alignment.graph import PyTree


class UserError(ValueError):
    """What the user's code raised. Whoever calls that code says so, callers further out hand it on."""


def told(what: str, call: Callable[[], PyTree], hint: Callable[[Exception], str] = lambda _: "") -> PyTree:
    """What a call of the user's code returns.

    Args:
        what: is called, and on what.
        call: it.
        hint: what to do about an error, to be said where it raises.

    Raises:
        UserError: where it raises anything, with that.
    """
    try:
        return call()
    except UserError:
        raise
    except Exception as error:  # whatever a user's code raises
        said, help_ = first_line(error), hint(error)
        raise UserError(f"{what} raised {said.removesuffix('.') if help_ else said}{help_}") from error


def told_of_network(apply: Callable[..., PyTree], variables: PyTree, inputs: PyTree) -> PyTree:
    """The outputs of a network. Raises UserError where it raises anything."""
    return told(f"the network, on inputs of {kinds_of(inputs)},", lambda: apply(variables, inputs))


def check_variables(call: str, variables: PyTree) -> None:
    """Raise ValueError for what the library returned around variables, or instead of them."""
    if not isinstance(variables, tuple) or not type(variables).__module__.startswith("npmerge."):
        return
    remedies = {
        "theta": "pass its .theta, that of a merge as merge.apply(result.theta, stack)",
        "variables": "pass its .variables",
        "params": "merge the models first, as in Average()(stack)",
    }
    for name, remedy in remedies.items():
        if hasattr(variables, name):
            raise ValueError(f"{call} the variables of a network: got {kind_of(variables)}, {remedy}")


def _of_several(variables: PyTree) -> str:
    """What to do where all leaves have as many parts, as models side by side and coefficients of theirs have."""
    sizes = [np.shape(x)[:1] for x in jax.tree.leaves(variables)]
    if len(sizes) < 2 or len(set(sizes)) > 1 or sizes[0] == ():
        return ""
    return "; if these variables are a theta, or models side by side, pass merge.apply(theta, stack)"


def outputs_of(apply: Callable[..., PyTree], variables: PyTree, inputs: PyTree) -> PyTree:
    """The shapes and dtypes of the outputs of a network. Raises UserError where it raises anything."""
    what = f"the network, on inputs of {kinds_of(inputs)},"

    def hint(error: Exception) -> str:
        images = channels_first(map(np.shape, jax.tree.leaves(inputs)))
        return images or _of_several(variables) or slip_of(error, apply, variables)

    return told(what, lambda: jax.eval_shape(apply, variables, inputs), hint)


def of_pair(outputs: PyTree) -> str:
    """What outputs are, and what to do, if they come with new statistics, as training mode returns them; nothing of others."""
    if isinstance(outputs, tuple) and len(outputs) == 2 and isinstance(outputs[1], Mapping):
        return "a tuple (outputs, variables): drop the new statistics, lambda v, x: train_apply(v, x)[0]"
    return ""


def kinds_of(tree: PyTree) -> str:
    """The dtypes and shapes of arrays, of n examples each, in a line."""
    return in_a_line(tree, lambda shape: f" (n{''.join(f', {size}' for size in shape[1:])})")
