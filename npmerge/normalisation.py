"""Normalisation layers after a merge: running statistics are re-estimated from data."""

import functools
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Var
from jaxtyping import Array

from alignment.checks import check_kinds, kind_of
from alignment.finite import check_finite
from alignment.graph import PyTree, Signature, as_shapes, flatten, floating, path_name, signature
from alignment.names import is_statistic
from alignment.program import deciding, nested
from npmerge.batches import measured
from npmerge.telling import tell_of

TrainApply = Callable[[PyTree, Array], tuple[PyTree, PyTree]]


def reset_statistics(train_apply: TrainApply, variables: PyTree, batches: Iterable[tuple]) -> PyTree:
    """Replace running statistics by their averages over batches: what the network itself would see.

    Works for any layer whose statistics follow `new = momentum * old + (1 - momentum) * batch`, whatever the momentum and
    the names: training mode is run with all statistics at zero, once also at another value, which tells the momentum and the
    batch's own values apart. Every batch counts equally, whatever their order (Jordan et al. 2023, "REPAIR", section 3).

    Args:
        train_apply: `(variables, inputs) -> (outputs, variables with new statistics)`; for Flax Linen
            `out, new = net.apply(v, x, train=True, mutable=["batch_stats"])`, then `out, {**v, **new}`.
        variables: the merged network.
        batches: `(inputs, targets)`; targets are not read. Use large batches, of one size.

    Returns:
        The variables with new statistics, everything else untouched. A network without statistics comes back as it is.

    Raises:
        ValueError: no batches, statistics that `train_apply` does not move, or that come out as NaN or infinity.

    Example:
        >>> def train_apply(v, x):  # a norm whose statistics move by half
        ...     mean = 0.5 * v["batch_stats"]["mean"] + 0.5 * x.mean(0)
        ...     return x - x.mean(0, keepdims=True), {"batch_stats": {"mean": mean}}
        >>> batches = [(jnp.array([[1.0, 2.0], [3.0, 6.0]]), None), (jnp.array([[4.0, 0.0]]), None)]
        >>> found = nm.reset_statistics(train_apply, {"batch_stats": {"mean": jnp.zeros(2)}}, batches)
        >>> [f"{x:.2f}" for x in found["batch_stats"]["mean"]]  # of batches with means (2, 4) and (4, 0)
        ['3.00', '2.00']
    """
    return reset_some(train_apply, variables, batches)


def reset_some(
    train_apply: TrainApply, variables: PyTree, batches: Iterable[tuple], wanted: Collection[str] | None = None
) -> PyTree:
    """`reset_statistics`, of some of the statistics: what lies behind them in the network is not run, and stays as it is.

    Args:
        train_apply: as there, and so are variables and batches.
        variables: the merged network.
        batches: data.
        wanted: paths of leaves, of which those count that are statistics; with them go others that training mode makes them
            of, as Haiku's `average` of its `hidden`. None for all.
    """
    call = "reset_statistics takes (train_apply, variables, batches)"
    check_kinds(call, (train_apply, Callable), (variables, object), (batches, Iterable))
    batches = measured(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("reset_statistics needs data: got no batches")
    paths = _statistics(train_apply, signature(variables), signature(first[0]))
    if wanted is not None:
        paths = _made_of(train_apply, signature(variables), signature(first[0]), frozenset(wanted) & frozenset(paths))
    if not paths:
        return variables
    zeros = {p: jnp.zeros_like(x) for p, x in flatten(variables).items() if p in paths}
    at_zero = _run(train_apply, variables, first[0], zeros)
    probe = _probe(zeros, at_zero)
    rates = _rates(probe, at_zero, _run(train_apply, variables, first[0], probe))
    for path, rate in rates.items():
        if not float(rate) > 1e-6:
            raise ValueError(f"training mode does not move the statistics at {path!r}: is its momentum 1?")
    total, count = at_zero, 1
    for inputs, *_ in batches:
        total = jax.tree.map(jnp.add, total, _run(train_apply, variables, inputs, zeros))
        count += 1
    means = _means(total, rates, np.float32(count))
    check_finite(means, "what training mode makes of the statistics")
    return _replace(variables, means)


def warn_of_statistics(paths: Sequence[str], remedy: str, *, stacklevel: int) -> None:
    """Warn that a network is run on running statistics which are not its own.

    Args:
        paths: of statistics that lie between those of several models.
        remedy: what to do.
        stacklevel: of the caller's warning, as `warnings.warn` counts.
    """
    warnings.warn(
        f"running statistics such as {paths[0]!r} are interpolated between those of the models, which no merged network has: "
        f"{remedy}",
        stacklevel=stacklevel + 1,
    )


def statistics_read(function: Callable[..., PyTree], variables: PyTree, *others: PyTree) -> list[str]:
    """The paths of running statistics that the results of a function depend on: none in training mode.

    Args:
        function: of the variables and others.
        variables: arrays or `jax.ShapeDtypeStruct`.
        others: likewise.
    """
    paths = list(flatten(variables))
    if not any(map(is_statistic, paths)):
        return []
    jaxpr = jax.make_jaxpr(function)(variables, *others).jaxpr
    return [path for path in deciding(jaxpr, [True] * len(jaxpr.outvars), paths) if is_statistic(path)]


@jax.jit
def _probe(zeros: dict[str, Array], at_zero: dict[str, Array]) -> dict[str, Array]:
    """As large as the statistics themselves, or the momentum would drown in rounding."""
    return {path: (1 + 100 * jnp.abs(x)).astype(zeros[path].dtype) for path, x in at_zero.items()}


@jax.jit
def _rates(probe: dict[str, Array], at_zero: dict[str, Array], at_probe: dict[str, Array]) -> dict[str, Array]:
    """How far one batch moves the statistics: one minus the momentum."""
    return {path: 1 - jnp.mean((at_probe[path] - at_zero[path]) / x.astype(jnp.float32)) for path, x in probe.items()}


@jax.jit
def _means(total: dict[str, Array], rates: dict[str, Array], count: Array) -> dict[str, Array]:
    return {path: x / (rates[path] * count) for path, x in total.items()}


@functools.lru_cache(maxsize=32)
def _statistics(train_apply: TrainApply, model: Signature, batch: Signature) -> tuple[str, ...]:
    """The floating-point leaves that training mode computes anew; it hands the others through."""
    variables, inputs = as_shapes(model), as_shapes(batch)
    returned = jax.eval_shape(train_apply, variables, inputs)
    if not isinstance(returned, tuple) or len(returned) != 2:
        got = "the outputs alone, as apply returns them" if hasattr(returned, "shape") else kind_of(returned)
        raise ValueError(f"train_apply must return (outputs, variables with new statistics): got {got}")
    closed = jax.make_jaxpr(lambda v, x: train_apply(v, x)[1])(variables, inputs)
    leaves = flatten(variables)
    if odd := sorted(flatten(returned[1]).keys() ^ leaves.keys()):
        there = "is missing" if odd[0] in leaves else "was not given"
        linen = "; with Flax Linen: outputs, new = net.apply(v, x, mutable=['batch_stats']); return outputs, {**v, **new}"
        raise ValueError(f"train_apply must return (outputs, all variables) as it was given them: {odd[0]!r} {there}{linen}")
    handed = {path for path, k in zip(leaves, _handed_through(closed.jaxpr), strict=True) if k is not None}
    if still := [path for path in floating(variables) if path in handed and is_statistic(path)]:
        raise ValueError(f"train_apply hands the statistics at {still[0]!r} through unchanged: is it in training mode?")
    return tuple(path for path in floating(variables) if path not in handed)


@functools.lru_cache(maxsize=64)
def _made_of(train_apply: TrainApply, model: Signature, batch: Signature, wanted: frozenset[str]) -> tuple[str, ...]:
    """Some statistics and those that training mode makes their new values of."""
    paths, every = list(flatten(as_shapes(model))), _statistics(train_apply, model, batch)

    def new(variables: PyTree, inputs: PyTree) -> list[Array]:
        leaves = flatten(train_apply(variables, inputs)[1])
        return [leaves[path] for path in paths]

    jaxpr = jax.make_jaxpr(new)(as_shapes(model), as_shapes(batch)).jaxpr
    found: frozenset[str] = frozenset()
    while wanted != found:
        found = wanted
        wanted = found.union(path for path in deciding(jaxpr, [p in found for p in paths], paths) if path in every)
    return tuple(path for path in every if path in found)


def _handed_through(jaxpr: Jaxpr) -> list[int | None]:
    """For each output of a jaxpr the input that it is, unchanged, or None; calls are looked into."""
    source: dict[Var, int] = {v: k for k, v in enumerate(jaxpr.invars)}
    for eqn in jaxpr.eqns:
        inner = nested(eqn)
        for out, k in zip(eqn.outvars, _handed_through(inner.jaxpr) if inner is not None else (), strict=False):
            if k is not None and isinstance(v := eqn.invars[k], Var) and v in source:
                source[out] = source[v]
    return [source.get(v) if isinstance(v, Var) else None for v in jaxpr.outvars]


def _run(*args: Any) -> dict[str, Array]:
    """`_new`, which tells what it costs."""
    tell_of(_new, *args)
    return _new(*args)


@functools.partial(jax.jit, static_argnums=0)
def _new(train_apply: TrainApply, variables: PyTree, inputs: Array, statistics: dict[str, Array]) -> dict[str, Array]:
    """The new statistics after one batch, from these old ones."""
    new = flatten(train_apply(_replace(variables, statistics), inputs)[1])
    return {path: new[path].astype(jnp.float32) for path in statistics}


def _replace(variables: PyTree, leaves: dict[str, Array]) -> PyTree:
    def leaf(path: tuple, x: Array) -> Array:
        new = leaves.get(path_name(path))
        return x if new is None else new.astype(x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, variables)
