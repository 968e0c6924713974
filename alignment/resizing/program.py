"""The jaxpr of a network evaluated at other widths, calls, loops and branches entered."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array

from alignment.primitives import RULES, Value
from alignment.program import CUSTOM, evaluated, nested
from alignment.resizing.counts import trail
from alignment.resizing.equations import CHANGED
from alignment.resizing.sizes import Sizes
from alignment.resizing.values import Equation, Known, Shape, Trail, fitted
from alignment.resizing.width_numbers import Numbers
from alignment.tracing.provenance import in_library
from alignment.tracing.trace import Walk

REMAT = {"checkpoint", "remat", "remat2"}


def evaluate(walk: Walk, sizes: Sizes, arrays: Sequence[Any]) -> list[Any]:
    """The outputs of the function that was walked over, for leaves and inputs of the new sizes.

    Raises:
        ValueError: where a primitive cannot be run at the new sizes (it is named).
    """
    values = [*walk.params.values(), *walk.data]
    run = _Run(walk, sizes)
    outs = run.call(walk.closed, [Known(*pair) for pair in zip(arrays, values, strict=True)], ())
    run.numbers.warn()
    return [known.array for known in outs]


class _Run:
    def __init__(self, walk: Walk, sizes: Sizes):
        self.walk, self.sizes, self.numbers = walk, sizes, Numbers(sizes)
        self.trails: dict[tuple[int, ...], list[Trail]] = {}  # of the results of nested jaxprs, by location

    def call(self, closed: ClosedJaxpr, args: Sequence[Known], prefix: tuple[int, ...]) -> list[Known]:
        """The results of a jaxpr."""
        jaxpr: Jaxpr = closed.jaxpr
        env: dict[Var, Known] = dict(zip(jaxpr.invars, args, strict=True))
        env |= {v: self.constant(x) for v, x in zip(jaxpr.constvars, closed.consts, strict=True)}

        def read(v: Var | Literal) -> Known:
            return self.constant(v.val) if isinstance(v, Literal) else env[v]

        outside, borrowed = self.numbers.hidden, bool(prefix) and in_library(jaxpr)
        self.numbers.hidden |= borrowed
        for index, eqn in enumerate(jaxpr.eqns):
            if not self.numbers.hidden:
                self.numbers.where = eqn.source_info
            outs = self.equation(eqn, jaxpr, [read(v) for v in eqn.invars], (*prefix, index))
            env.update(zip(eqn.outvars, outs, strict=True))
        self.numbers.hidden = outside
        results = [read(v) for v in jaxpr.outvars]
        self.trails[prefix] = [known.trail for known in results]
        return results

    def constant(self, x: Any) -> Known:
        """What the function brings along."""
        return Known(x, self.walk.constant(x))

    def shape(self, value: Value) -> Shape:
        """The new shape of a value."""
        return tuple(map(self.sizes.axis, value.axes, value.shape))

    def equation(self, eqn: JaxprEqn, whole: Jaxpr, ins: Sequence[Known], location: tuple[int, ...]) -> list[Known]:
        """The results of one equation: as it was if none of its sizes change."""
        outs = self.walk.results[location]
        shapes = [self.shape(value) for value in outs]
        before = [known.value.shape for known in ins] + [value.shape for value in outs]
        same = before == [jnp.shape(known.array) for known in ins] + shapes
        e = Equation(eqn, whole, ins, outs, shapes, self.sizes)
        if same and not any(known.trail.changed for known in ins):
            made = evaluated(eqn, whole, *e.arrays)
        else:
            e = replace(e, ins=self.numbers.followed(e))
            made = self.changed(e, location)
        trails = self.trails.get(location) or [trail(e)] * len(outs)
        made = self.numbers.settled(e, made, trails[0]) if trails else made
        for array, shape in zip(made, shapes, strict=True):
            if jnp.shape(array) != shape:
                raise ValueError(f"cannot run {eqn.primitive.name!r} at other widths: got {jnp.shape(array)}, expected {shape}")
        return [Known(*known) for known in zip(made, outs, trails, strict=True)]

    def changed(self, e: Equation, location: tuple[int, ...]) -> list[Any]:
        """The results of an equation whose operands or results have changed."""
        name = e.eqn.primitive.name
        inner = nested(e.eqn)
        if inner is not None:
            run = functools.partial(self.inside, inner, e, location)
            if name in CUSTOM and _is_elementwise(inner.jaxpr):
                return _with_own_derivative(e, run)
            return (jax.checkpoint(run) if name in REMAT else run)(*e.arrays)
        if name == "scan":
            return self.scan(e, location)
        if name == "while":
            return self.while_loop(e, location)
        if name == "cond":
            return self.cond(e, location)
        if name in CHANGED:
            return CHANGED[name](e)
        if _has_elementwise_rule(e.eqn):
            return e.bind(*(fitted(known, e.shapes[0]) for known in e.ins))
        return e.bind(*e.arrays)

    def inside(self, closed: ClosedJaxpr, e: Equation, location: tuple[int, ...], *arrays: Any) -> list[Any]:
        """The results of a nested call."""
        args = [replace(known, array=a) for a, known in zip(arrays, e.ins, strict=True)]
        return [known.array for known in self.call(closed, args, location)]

    def scan(self, e: Equation, location: tuple[int, ...]) -> list[Any]:
        """A loop whose body has other widths."""
        p = e.eqn.params
        first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
        carried = self.carried(e, e.ins[first:last])

        def body(carry: list, x: list) -> tuple[list, list]:
            steps = [Known(a, _of_a_step(known.value), known.trail) for a, known in zip(x, e.ins[last:], strict=True)]
            args = [*e.ins[:first], *(Known(a, known.value) for a, known in zip(carry, carried, strict=True)), *steps]
            outs = [known.array for known in self.call(p["jaxpr"], args, location)]
            return outs[: len(carry)], outs[len(carry) :]

        arrays = [known.array for known in carried], [known.array for known in e.ins[last:]]
        carry, stacked = jax.lax.scan(body, *arrays, length=p["length"], reverse=p["reverse"], unroll=p["unroll"])
        return [*carry, *stacked]

    def while_loop(self, e: Equation, location: tuple[int, ...]) -> list[Any]:
        """A loop of so many steps as its condition says."""
        p = e.eqn.params
        first, last = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        carried = self.carried(e, e.ins[last:])

        def inside(number: int, name: str, consts: Sequence[Known], carry: Sequence[Any]) -> list[Any]:
            args = [*consts, *(Known(a, known.value) for a, known in zip(carry, carried, strict=True))]
            return [known.array for known in self.call(p[name], args, (*location, number))]

        return jax.lax.while_loop(
            lambda carry: inside(0, "cond_jaxpr", e.ins[:first], carry)[0],
            lambda carry: inside(1, "body_jaxpr", e.ins[first:last], carry),
            [known.array for known in carried],
        )

    def cond(self, e: Equation, location: tuple[int, ...]) -> list[Any]:
        """One of several branches; all of them make results of the same new shapes."""

        def branch(number: int, closed: ClosedJaxpr, *arrays: Any) -> list[Any]:
            args = [replace(known, array=a) for a, known in zip(arrays, e.ins[1:], strict=True)]
            outs = self.call(closed, args, (*location, number))
            return [fitted(known, shape) for known, shape in zip(outs, e.shapes, strict=True)]

        branches = [functools.partial(branch, k, closed) for k, closed in enumerate(e.eqn.params["branches"])]
        which, *operands = e.arrays
        return jax.lax.switch(which.astype(jnp.int32), branches, *operands)

    def carried(self, e: Equation, before: Sequence[Known]) -> list[Known]:
        """What a loop carries, as long as it will be after the first step."""
        return [Known(fitted(k, shape), value) for k, shape, value in zip(before, e.shapes, e.outs, strict=False)]


def _of_a_step(value: Value) -> Value:
    return Value(value.shape[1:], value.axes[1:])


def _is_elementwise(jaxpr: Jaxpr) -> bool:
    """Whether each element of the results depends on the same element of the operands alone."""
    shapes = {getattr(v.aval, "shape", None) for v in (*jaxpr.invars, *jaxpr.outvars)}
    inner = [nested(eqn) for eqn in jaxpr.eqns]
    return len(shapes) == 1 and all(
        _is_elementwise(called.jaxpr) if called is not None else _has_elementwise_rule(eqn)
        for eqn, called in zip(jaxpr.eqns, inner, strict=True)
    )


def _has_elementwise_rule(eqn: JaxprEqn) -> bool:
    return getattr(RULES.get(eqn.primitive.name), "__module__", "").endswith(".elementwise")


def _with_own_derivative(e: Equation, run: Callable[..., list[Any]]) -> list[Any]:
    """An elementwise function with a derivative of its own (that of relu at zero), which is written for the old shape."""
    pieces, arrays = functools.partial(_in_pieces, e), [fitted(known, e.shapes[0]) for known in e.ins]
    if e.eqn.primitive.name == "custom_jvp_call":
        forward = jax.custom_jvp(run)
        forward.defjvp(functools.partial(jax.jvp, pieces))
        return forward(*arrays)
    backward = jax.custom_vjp(run)
    backward.defvjp(lambda *x: jax.vjp(pieces, *x), lambda vjp, cotangent: vjp(cotangent))
    return backward(*arrays)


def _in_pieces(e: Equation, *arrays: Array) -> list[Array]:
    """The function of so many elements at a time as it is written for."""
    old, new = e.ins[0].value.shape, e.shapes[0]
    pieces = -(-math.prod(new) // math.prod(old))

    def cut(x: Array) -> Array:
        return jnp.pad(jnp.ravel(x), (0, pieces * math.prod(old) - x.size)).reshape(pieces, *old)

    outs = jax.vmap(functools.partial(evaluated, e.eqn, e.whole))(*map(cut, arrays))
    return [jnp.ravel(out)[: math.prod(new)].reshape(new) for out in outs]
