"""Several networks run side by side, which meet where the outputs of some of their weights are averaged."""

from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal, Var
from jaxtyping import Array

from alignment.graph import PyTree
from alignment.program import evaluated, nested
from alignment.tracing.trace import walked
from npmerge.arithmetic import mean_of

Meeting = Generator[Array, Array, Any]
"""A network on its way: it gives what a weight makes and takes the mean over all networks in its place."""


def side_by_side(
    functions: Sequence[Callable[..., PyTree]], paths: Collection[str], variables: Sequence[PyTree], inputs: PyTree
) -> list[PyTree]:
    """What networks of one architecture return when the outputs of some weights are the means over all of them.

    Behind such a place networks with the same weights compute the same, which XLA does once under `jax.jit`.

    Args:
        functions: one for each network.
        paths: of the weights whose outputs are averaged, at every linear site that they have.
        variables: of each network.
        inputs: a batch, the same for all.

    Raises:
        ValueError: a weight that has no linear site in the function, or one inside a loop.
    """
    if not paths:
        return [function(v, inputs) for function, v in zip(functions, variables, strict=True)]
    runs = [_run(function, paths, v, inputs) for function, v in zip(functions, variables, strict=True)]
    made = [next(run) for run in runs]
    while True:
        mean, made, ended = mean_of(made), [], []
        for run in runs:
            try:
                made.append(run.send(mean))
            except StopIteration as stop:
                ended.append(stop.value)
        if ended:
            return ended


def _run(function: Callable[..., PyTree], paths: Collection[str], variables: PyTree, inputs: PyTree) -> Meeting:
    walk = walked(function, variables, (inputs,))
    sites = [site for site in walk.graph()[0].sites if site.path in paths]
    if missing := sorted(set(paths) - {site.path for site in sites}):
        raise ValueError(f"{missing[0]!r} is no weight of a linear layer, so what it makes cannot be averaged: cut elsewhere")
    if looped := [site.name for site in sites if site.stacked]:
        raise ValueError(f"{looped[0]!r} is inside a loop, where what it makes cannot be averaged: cut elsewhere")
    arrays = [*jax.tree.leaves(variables), *jax.tree.leaves(inputs)]
    outputs = yield from _evaluate(walk.closed, arrays, (), {site.location for site in sites})
    return jax.tree.unflatten(walk.structure, outputs)


def _evaluate(closed: ClosedJaxpr, args: Sequence[Any], prefix: tuple[int, ...], places: Collection[tuple]) -> Meeting:
    """Evaluate a jaxpr, entering the calls that hold a place and stopping at each."""
    jaxpr = closed.jaxpr
    env: dict[Var, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))

    def read(v: Var | Literal) -> Any:
        return v.val if isinstance(v, Literal) else env[v]

    for index, eqn in enumerate(jaxpr.eqns):
        here, ins = (*prefix, index), [read(v) for v in eqn.invars]
        inside = any(place[: len(here)] == here and place != here for place in places)
        if inside and (inner := nested(eqn)) is not None:
            outs = yield from _evaluate(inner, ins, here, places)
        else:
            outs = evaluated(eqn, jaxpr, *ins)
        if here in places:
            outs = [(yield outs[0])]
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]
