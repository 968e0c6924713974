"""Reading a node's features out of a forward pass, without touching the user's model: the jaxpr is run with taps."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array, Float

from alignment.graph import Graph, PyTree, Tap
from alignment.trace import nested


def capture(
    apply: Callable[..., PyTree], graph: Graph, variables: PyTree, *inputs: PyTree
) -> dict[str, Float[Array, "samples units"]]:
    """The features of every tapped node in one forward pass; every position of an image counts as a sample.

    Traceable: under `jax.jit` only what is used of the result is computed. The batch size may differ from the one that was
    traced; the function must be the same.

    Raises:
        ValueError: if the function's equations are not those the graph was traced from.
    """
    closed = jax.make_jaxpr(apply)(variables, *inputs)
    wanted = {(tap.location, tap.output) for tap in graph.taps.values()}
    found: dict[tuple, Array] = {}
    _run(closed.jaxpr, closed.consts, jax.tree.leaves((variables, *inputs)), (), wanted, found)
    return {name: _features(name, tap, graph, found) for name, tap in graph.taps.items()}


def _features(name: str, tap: Tap, graph: Graph, found: Mapping[tuple, Array]) -> Array:
    x = found.get((tap.location, tap.output))
    if x is None or x.ndim <= tap.axis or x.shape[tap.axis] < tap.intervals[-1][1]:
        raise ValueError(
            f"the tap of node {name!r} is not where it was traced: trace the graph from this very function, jitted or not"
        )
    x = jnp.moveaxis(x, tap.axis, -1)
    x = jnp.concatenate([x[..., a:b] for a, b in tap.intervals], axis=-1)
    return x.reshape(-1, graph.nodes[name].size)


def _run(jaxpr: Jaxpr, consts: list, args: list, prefix: tuple[int, ...], wanted: set, found: dict) -> list[Any]:
    """Evaluate a jaxpr, entering the calls that hold a tap and keeping what the taps ask for."""
    env: dict[Var, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(v: Var | Literal) -> Any:
        return v.val if isinstance(v, Literal) else env[v]

    for index, eqn in enumerate(jaxpr.eqns):
        here = (*prefix, index)
        ins = [read(v) for v in eqn.invars]
        inner = nested(eqn)
        if inner is not None and any(location[: len(here)] == here for location, _ in wanted):
            outs = _run(inner.jaxpr, inner.consts, ins, here, wanted, found)
        else:
            outs = _evaluate(eqn, ins, jaxpr)
        env.update(zip(eqn.outvars, outs, strict=True))
        for k, value in enumerate(outs):
            if (here, k) in wanted:
                found[here, k] = value
    return [read(v) for v in jaxpr.outvars]


def _evaluate(eqn: JaxprEqn, ins: list[Any], whole: Jaxpr) -> list[Any]:
    """Run one equation, as a jaxpr of its own so that JAX itself restores the context it was traced in."""
    args = {v: x for v, x in zip(eqn.invars, ins, strict=True) if isinstance(v, Var)}
    info = whole.debug_info._replace(arg_names=None, result_paths=None)
    alone = Jaxpr((), list(args), eqn.outvars, [eqn], eqn.effects, info)
    return list(jax.core.eval_jaxpr(alone, (), *args.values()))
