"""From any pure function to its symmetry graph: `trace` walks the jaxpr and applies one rule per equation."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from alignment.graph import Graph, PyTree, flatten
from alignment.labelling import Seen, build_graph
from alignment.primitives import KEEPS_ZERO, RULES, UNSUPPORTED, Axes, Equation, Value, fixed, unsupported
from alignment.terms import Ref, Term, Terms, refs

CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat", "remat2"}


def trace(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> Graph:
    """Read the symmetry graph of `apply(variables, *inputs)` off its jaxpr.

    Works for any pure JAX function of a tree of arrays: plain JAX, Flax Linen, NNX split state. Nothing is computed and
    nothing about the architecture has to be said.

    Args:
        apply: the network in evaluation mode, a pure function.
        variables: its parameters and statistics, arrays or `jax.ShapeDtypeStruct`.
        inputs: example inputs, arrays or `jax.ShapeDtypeStruct`; only shapes and dtypes matter.

    Returns:
        The `Graph`: nodes with their groups, a label for every axis, what is held fixed and why, where to tap.

    Warns:
        UserWarning: once for each primitive without a rule whose operands could otherwise have moved.
    """
    closed = jax.make_jaxpr(apply)(variables, *inputs)
    leaves = flatten(variables)
    walk = _Walk()
    params = [walk.parameter(path, leaf) for path, leaf in leaves.items()]
    shapes = [_shape(v) for v in closed.jaxpr.invars[len(params) :]]
    data = [Value(shape, fixed(walk.terms, shape, "input"), data=True) for shape in shapes]
    outputs = walk.call(closed.jaxpr, closed.consts, [*params, *data], ())
    for value in outputs:
        for term in value.axes:
            if term is not None:
                walk.terms.pin(term, "output")
    for name in walk.costly():
        warnings.warn(
            f"no rule for primitive {name!r}: the axes it touches are held fixed "
            f"(teach it with alignment.primitives.rule({name!r}))",
            stacklevel=2,
        )
    return build_graph(walk.terms, dict(zip(leaves, params, strict=True)), seen=walk.seen, made=walk.made, used=list(walk.used))


class _Walk:
    """One pass over a jaxpr. Nested calls are entered with fresh variables: a cached jaxpr never ties two calls."""

    def __init__(self) -> None:
        self.terms = Terms()
        self.seen: list[Seen] = []
        self.made: list[Value] = []  # every value, whether or not the inputs had a part in it
        self.unknown: dict[str, list[Term]] = {}
        self.used: dict[str, None] = {}  # paths of the variables in the order in which the network reads them
        self._paths: dict[int, str] = {}

    def parameter(self, path: str, leaf: PyTree) -> Value:
        dtype, shape = getattr(leaf, "dtype", None) or jnp.result_type(leaf), np.shape(leaf)
        if jnp.issubdtype(dtype, jnp.inexact):
            value = Value(shape, tuple(self.terms.fresh(n) for n in shape))
        else:
            value = Value(shape, fixed(self.terms, shape, f"{dtype} leaf"))
        self._paths[id(value)] = path
        return value

    def call(self, jaxpr: Jaxpr, consts: list, args: list[Value], prefix: tuple[int, ...]) -> list[Value]:
        env: dict[Var, Value] = dict(zip(jaxpr.invars, args, strict=True))
        for var in jaxpr.constvars:
            env[var] = Value(_shape(var), fixed(self.terms, _shape(var), "constant inside the function"))

        def read(v: Var | Literal) -> Value:
            if not isinstance(v, Literal):
                return env[v]
            shape = np.shape(v.val)
            if shape:
                return Value(shape, fixed(self.terms, shape, "constant inside the function"))
            return Value((), (), zero=bool(v.val == 0))

        for index, eqn in enumerate(jaxpr.eqns):
            outs = self.equation(eqn, [read(v) for v in eqn.invars], (*prefix, index))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: JaxprEqn, ins: list[Value], location: tuple[int, ...]) -> list[Value]:
        inner = nested(eqn)
        if inner is not None:
            return self.call(inner.jaxpr, inner.consts, ins, location)
        self.used.update((self._paths[id(v)], None) for v in ins if id(v) in self._paths)
        shapes = [_shape(v) for v in eqn.outvars]
        seen = Equation(eqn.primitive.name, eqn.params, ins, shapes)
        data = any(v.data for v in ins)
        zero = seen.name in KEEPS_ZERO and all(v.zero for v in ins)
        outs = [
            Value(shape, _without_units(shape, axes), data=data, zero=zero)
            for shape, axes in zip(shapes, self.apply_rule(seen), strict=True)
        ]
        self.made += outs
        for k, (value, var) in enumerate(zip(outs, eqn.outvars, strict=True)):
            if data and jnp.issubdtype(_dtype(var), jnp.floating):
                self.seen.append(Seen(location, k, value))
        return outs

    def apply_rule(self, eqn: Equation) -> list[Axes]:
        known = RULES.get(eqn.name)
        if known is not None:
            return known(self.terms, eqn)
        self.unknown.setdefault(eqn.name, []).extend(t for v in eqn.ins for t in v.axes if t is not None)
        return unsupported(self.terms, eqn)

    def costly(self) -> list[str]:
        """The primitives without a rule that hold an axis which nothing else holds."""

        def held_by_them_alone(ref: Ref) -> bool:
            return all(reason.startswith(UNSUPPORTED) for reason in self.terms.pins(Ref(ref.atom)))

        found = {name: [r for t in terms for r in refs(self.terms.resolve(t))] for name, terms in self.unknown.items()}
        return [name for name, atoms in found.items() if any(map(held_by_them_alone, atoms))]


def nested(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr of a call that does nothing but run it (jit, custom derivatives, checkpoint), else None."""
    if eqn.primitive.name not in CALLS:
        return None
    inner = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, [])


def _shape(v: Var) -> tuple[int, ...]:
    return tuple(getattr(v.aval, "shape", ()))  # tokens and other abstract values have none


def _dtype(v: Var) -> Any:
    return getattr(v.aval, "dtype", None)


def _without_units(shape: tuple[int, ...], axes: Axes) -> Axes:
    return tuple(None if n == 1 else t for n, t in zip(shape, axes, strict=True))
