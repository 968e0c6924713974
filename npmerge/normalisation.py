"""Normalisation layers after a merge: running statistics are re-estimated from data."""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jax.extend.core import Var
from jaxtyping import Array

from alignment.graph import PyTree, flatten, path_name

TrainApply = Callable[[PyTree, Array], tuple[Array, PyTree]]


def reset_statistics(train_apply: TrainApply, variables: PyTree, batches: Iterable[tuple]) -> PyTree:
    """Replace running statistics by their averages over batches: what the network itself would see.

    Works for any layer whose statistics follow `new = momentum * old + (1 - momentum) * batch`, whatever the momentum and
    the names: training mode is run with all statistics at zero, once also at one, which tells the momentum and the batch's
    own values apart. Every batch counts equally, independently of their order (Jordan et al. 2023, REPAIR; the reset every
    merge of BatchNorm networks needs).

    Args:
        train_apply: `(variables, inputs) -> (outputs, variables with new statistics)`.
        variables: the merged network.
        batches: `(inputs, targets)`; targets are not read. Use large batches, of one size.

    Returns:
        The variables with new statistics, everything else untouched. A network without statistics comes back as it is.

    Raises:
        ValueError: no batches, or statistics that `train_apply` does not move.
    """
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("reset_statistics needs data: got no batches")
    paths = _statistics(train_apply, variables, first[0])
    if not paths:
        return variables
    at_zero = _run(train_apply, paths, variables, first[0], 0.0)
    at_one = _run(train_apply, paths, variables, first[0], 1.0)
    rates = {p: 1 - (at_one[p] - at_zero[p]) for p in paths}
    for path, rate in rates.items():
        if not bool((rate > 0).all()):
            raise ValueError(f"training mode does not move the statistics at {path!r}: is its momentum 1?")
    total, count = at_zero, 1
    for inputs, *_ in batches:
        total = jax.tree.map(jnp.add, total, _run(train_apply, paths, variables, inputs, 0.0))
        count += 1
    means = {p: total[p] / (rates[p] * count) for p in paths}
    return _replace(variables, means)


def _statistics(train_apply: TrainApply, variables: PyTree, inputs: Array) -> tuple[str, ...]:
    """The floating-point leaves that training mode computes anew; it hands the others through."""
    closed = jax.make_jaxpr(lambda v, x: train_apply(v, x)[1])(variables, inputs)
    leaves = flatten(variables)
    if flatten(jax.eval_shape(train_apply, variables, inputs)[1]).keys() != leaves.keys():
        raise ValueError("train_apply must return (outputs, variables) with variables of the structure it was given")
    handed = {id(v) for v in closed.jaxpr.invars}
    found = zip(leaves.items(), closed.jaxpr.outvars, strict=True)
    return tuple(
        path
        for (path, leaf), v in found
        if not (isinstance(v, Var) and id(v) in handed) and jnp.issubdtype(leaf.dtype, jnp.floating)
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(train_apply: TrainApply, paths: tuple[str, ...], variables: PyTree, inputs: Array, value: float) -> dict[str, Array]:
    leaves = flatten(variables)
    set_to = {p: jnp.full(leaves[p].shape, value, leaves[p].dtype) for p in paths}
    new = flatten(train_apply(_replace(variables, set_to), inputs)[1])
    return {p: new[p].astype(jnp.float32) for p in paths}


def _replace(variables: PyTree, leaves: dict[str, Array]) -> PyTree:
    def leaf(path: tuple, x: Array) -> Array:
        new = leaves.get(path_name(path))
        return x if new is None else new.astype(x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, variables)
