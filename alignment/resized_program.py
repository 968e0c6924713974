"""The jaxpr of a network evaluated at other widths: one rule for each primitive whose parameters name sizes.

What a walk knows of every value gives its new shape: an axis with a term has the size of the term, one along which the value
is uniform keeps its old size until it meets an axis that has changed, and is then broadcast to it.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array

from alignment.primitives import RULES, Value
from alignment.primitives.layout import matching_runs
from alignment.program import CUSTOM, evaluated
from alignment.sizes import Sizes
from alignment.terms import Term
from alignment.trace import Walk, nested

Shape = tuple[int, ...]
KEEPS_COUNT = {"convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "copy", "stop_gradient"}
REMAT = {"checkpoint", "remat", "remat2"}


@dataclass(frozen=True)
class _Known:
    """An array at its new shape, what the walk knows of it, and the old and new number of units that it is a sum over."""

    array: Any
    value: Value
    count: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Equation:
    """An equation with changed operands: `shapes` are the new ones of its results."""

    eqn: JaxprEqn
    whole: Jaxpr
    ins: Sequence[_Known]
    outs: Sequence[Value]
    shapes: Sequence[Shape]
    sizes: Sizes

    @property
    def arrays(self) -> list[Any]:
        """The operands as they are."""
        return [known.array for known in self.ins]

    def bind(self, *arrays: Any, **changed: Any) -> list[Any]:
        """Run the primitive on these operands with some parameters changed."""
        primitive = self.eqn.primitive
        made = primitive.bind(*arrays, **{**self.eqn.params, **changed})
        return list(made) if primitive.multiple_results else [made]


def evaluate(walk: Walk, sizes: Sizes, arrays: Sequence[Any]) -> list[Any]:
    """The outputs of the function that was walked over, for leaves and inputs of the new sizes.

    Raises:
        ValueError: where a primitive cannot be run at the new sizes (it is named).
    """
    values = [*walk.params.values(), *walk.data]
    return [
        known.array
        for known in _Run(walk, sizes).call(walk.closed, [_Known(*pair) for pair in zip(arrays, values, strict=True)], ())
    ]


class _Run:
    def __init__(self, walk: Walk, sizes: Sizes):
        self.walk, self.sizes = walk, sizes

    def call(self, closed: ClosedJaxpr, args: Sequence[_Known], prefix: tuple[int, ...]) -> list[_Known]:
        """The results of a jaxpr."""
        jaxpr: Jaxpr = closed.jaxpr
        env: dict[Var, _Known] = dict(zip(jaxpr.invars, args, strict=True))
        env |= {v: self.constant(x) for v, x in zip(jaxpr.constvars, closed.consts, strict=True)}

        def read(v: Var | Literal) -> _Known:
            return self.constant(v.val) if isinstance(v, Literal) else env[v]

        for index, eqn in enumerate(jaxpr.eqns):
            outs = self.equation(eqn, jaxpr, [read(v) for v in eqn.invars], (*prefix, index))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def constant(self, x: Any) -> _Known:
        """What the function brings along."""
        return _Known(x, self.walk.constant(x))

    def shape(self, value: Value) -> Shape:
        """The new shape of a value."""
        return tuple(map(self.sizes.axis, value.axes, value.shape))

    def equation(self, eqn: JaxprEqn, whole: Jaxpr, ins: Sequence[_Known], location: tuple[int, ...]) -> list[_Known]:
        """The results of one equation: as it was if none of its sizes change."""
        outs = self.walk.results[location]
        shapes = [self.shape(value) for value in outs]
        before = [known.value.shape for known in ins] + [value.shape for value in outs]
        if before == [jnp.shape(known.array) for known in ins] + shapes and all(known.count is None for known in ins):
            made = evaluated(eqn, whole, *(k.array for k in ins))
        else:
            made = self.changed(_Equation(eqn, whole, ins, outs, shapes, self.sizes), location)
        for array, shape in zip(made, shapes, strict=True):
            if jnp.shape(array) != shape:
                raise ValueError(f"cannot run {eqn.primitive.name!r} at other widths: got {jnp.shape(array)}, expected {shape}")
        count = _count(eqn, ins)
        return [_Known(array, value, count) for array, value in zip(made, outs, strict=True)]

    def changed(self, e: _Equation, location: tuple[int, ...]) -> list[Any]:
        """The results of an equation whose operands or results have changed."""
        name = e.eqn.primitive.name
        inner = nested(e.eqn)
        if inner is not None and name in CUSTOM and _is_elementwise(inner.jaxpr):
            return _in_pieces(e)
        if inner is not None:
            run = functools.partial(self.inside, inner, e, location)
            return (jax.checkpoint(run) if name in REMAT else run)(*e.arrays)
        if name == "scan":
            return self.scan(e, location)
        if name == "while":
            return self.while_loop(e, location)
        if name == "cond":
            return self.cond(e, location)
        if name in CHANGED:
            return CHANGED[name](e)
        if RULES.get(name) is not None and RULES[name].__module__.endswith(".elementwise"):
            return e.bind(*(_fitted(known, e.shapes[0]) for known in e.ins))
        return e.bind(*e.arrays)

    def inside(self, closed: ClosedJaxpr, e: _Equation, location: tuple[int, ...], *arrays: Any) -> list[Any]:
        """The results of a nested call."""
        args = [_Known(a, known.value, known.count) for a, known in zip(arrays, e.ins, strict=True)]
        return [known.array for known in self.call(closed, args, location)]

    def scan(self, e: _Equation, location: tuple[int, ...]) -> list[Any]:
        """A loop whose body has other widths."""
        p = e.eqn.params
        first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
        carried = self.carried(e, e.ins[first:last])

        def body(carry: list, x: list) -> tuple[list, list]:
            steps = [_Known(a, _of_a_step(known.value)) for a, known in zip(x, e.ins[last:], strict=True)]
            args = [*e.ins[:first], *(_Known(a, known.value) for a, known in zip(carry, carried, strict=True)), *steps]
            outs = [known.array for known in self.call(p["jaxpr"], args, location)]
            return outs[: len(carry)], outs[len(carry) :]

        arrays = [known.array for known in carried], [known.array for known in e.ins[last:]]
        carry, stacked = jax.lax.scan(body, *arrays, length=p["length"], reverse=p["reverse"], unroll=p["unroll"])
        return [*carry, *stacked]

    def while_loop(self, e: _Equation, location: tuple[int, ...]) -> list[Any]:
        """A loop of so many steps as its condition says."""
        p = e.eqn.params
        first, last = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        carried = self.carried(e, e.ins[last:])

        def inside(number: int, name: str, consts: Sequence[_Known], carry: Sequence[Any]) -> list[Any]:
            args = [*consts, *(_Known(a, known.value) for a, known in zip(carry, carried, strict=True))]
            return [known.array for known in self.call(p[name], args, (*location, number))]

        return jax.lax.while_loop(
            lambda carry: inside(0, "cond_jaxpr", e.ins[:first], carry)[0],
            lambda carry: inside(1, "body_jaxpr", e.ins[first:last], carry),
            [known.array for known in carried],
        )

    def cond(self, e: _Equation, location: tuple[int, ...]) -> list[Any]:
        """One of several branches; all of them make results of the same new shapes."""

        def branch(number: int, closed: ClosedJaxpr, *arrays: Any) -> list[Any]:
            args = [_Known(a, known.value) for a, known in zip(arrays, e.ins[1:], strict=True)]
            outs = self.call(closed, args, (*location, number))
            return [_fitted(known, shape) for known, shape in zip(outs, e.shapes, strict=True)]

        branches = [functools.partial(branch, k, closed) for k, closed in enumerate(e.eqn.params["branches"])]
        which, *operands = e.arrays
        return jax.lax.switch(which.astype(jnp.int32), branches, *operands)

    def carried(self, e: _Equation, before: Sequence[_Known]) -> list[_Known]:
        """What a loop carries, as long as it will be after the first step."""
        return [_Known(_fitted(k, shape), value) for k, shape, value in zip(before, e.shapes, e.outs, strict=False)]


def _of_a_step(value: Value) -> Value:
    return Value(value.shape[1:], value.axes[1:])


def _count(eqn: JaxprEqn, ins: Sequence[_Known]) -> tuple[int, int] | None:
    """The old and the new number of units that a result is a sum over, if it is one and they differ."""
    if eqn.primitive.name == "reduce_sum":
        axes = eqn.params["axes"]
        old, new = (math.prod(shape[d] for d in axes) for shape in (ins[0].value.shape, ins[0].array.shape))
        return (old, new) if old != new else None
    return ins[0].count if eqn.primitive.name in KEEPS_COUNT else None


def _fitted(known: _Known, shape: Shape) -> Any:
    """An operand with the axes along which it is uniform as long as they now have to be."""
    x = known.array
    if not known.value.shape or x.shape == shape:
        return x
    for d, (n, term) in enumerate(zip(shape, known.value.axes, strict=True)):
        if x.shape[d] != n and term is None:
            x = jax.lax.slice_in_dim(x, 0, 1, axis=d)
    return jnp.broadcast_to(x, shape)


# ---------------------------------------------------------------------------------- primitives whose parameters name sizes


def _broadcast(e: _Equation) -> list[Any]:
    return e.bind(e.ins[0].array, shape=e.shapes[0])


def _reshape(e: _Equation) -> list[Any]:
    """What was repeated along an axis (a group's mean for each of its channels) is repeated as often as there are now units."""
    known, made = e.ins[0], e.outs[0]
    shape = list(known.array.shape)
    for old_dims, new_dims in matching_runs(known.value.shape, made.shape):
        terms = [term for d in new_dims if (term := made.axes[d]) is not None]
        pieces = e.sizes.factors(terms, [known.value.shape[d] for d in old_dims])
        for d, size in zip(old_dims, pieces or (), strict=False):
            if known.value.axes[d] is None:
                shape[d] = size
    return e.bind(_fitted(known, tuple(shape)), new_sizes=e.shapes[0])


def _iota(e: _Equation) -> list[Any]:
    return e.bind(shape=e.shapes[0])


def _slice(e: _Equation) -> list[Any]:
    p, (known,) = e.eqn.params, e.ins
    starts, limits = ([_offset(e, known.value, d, k) for d, k in enumerate(p[n])] for n in ("start_indices", "limit_indices"))
    return e.bind(known.array, start_indices=tuple(starts), limit_indices=tuple(limits))


def _split(e: _Equation) -> list[Any]:
    axis = e.eqn.params["axis"]
    return e.bind(e.ins[0].array, sizes=tuple(shape[axis] for shape in e.shapes))


def _pad(e: _Equation) -> list[Any]:
    config = []
    for d, (low, high, interior) in enumerate(e.eqn.params["padding_config"]):
        end = e.outs[0].shape[d]
        if min(low, high) > 0 or low > 0 or high > 0:
            starts = [_offset(e, e.outs[0], d, k) for k in (low, end - high, end)]
            low, high = starts[0], starts[2] - starts[1]
        config.append((low, high, interior))
    return e.bind(*e.arrays, padding_config=tuple(config))


def _concatenate(e: _Equation) -> list[Any]:
    along, start, pieces = e.eqn.params["dimension"], 0, []
    for known in e.ins:
        end = start + known.value.shape[along]
        shape = list(e.shapes[0])
        shape[along] = _offset(e, e.outs[0], along, end) - _offset(e, e.outs[0], along, start)
        pieces.append(_fitted(known, tuple(shape)))
        start = end
    return e.bind(*pieces)


def _gather(e: _Equation) -> list[Any]:
    (table, indices), sizes = e.ins[:2], e.eqn.params["slice_sizes"]
    whole = zip(sizes, table.value.shape, table.array.shape, strict=True)
    return e.bind(table.array, indices.array, slice_sizes=tuple(new if n == old else n for n, old, new in whole))


def _dynamic_slice(e: _Equation) -> list[Any]:
    return e.bind(*e.arrays, slice_sizes=e.shapes[0])


def _dot_general(e: _Equation) -> list[Any]:
    contracted, batch = e.eqn.params["dimension_numbers"]
    shapes = [list(known.array.shape) for known in e.ins]
    for a, b in (*zip(*contracted, strict=True), *zip(*batch, strict=True)):
        uniform = e.ins[0].value.axes[a] is None
        size = shapes[1][b] if uniform else shapes[0][a]
        shapes[0][a], shapes[1][b] = size, size
    return e.bind(*(_fitted(known, tuple(shape)) for known, shape in zip(e.ins, shapes, strict=True)))


def _convolution(e: _Equation) -> list[Any]:
    p, (images, kernel) = e.eqn.params, e.arrays
    numbers = p["dimension_numbers"]
    groups = images.shape[numbers.lhs_spec[1]] // kernel.shape[numbers.rhs_spec[1]]
    return e.bind(images, kernel, feature_group_count=groups)


def _overwrite(e: _Equation) -> list[Any]:
    return e.bind(_fitted(e.ins[0], e.shapes[0]), *e.arrays[1:])


def _quotient(e: _Equation) -> list[Any]:
    """A mean divides by the number of units."""
    above, below = e.ins
    if above.count is not None and below.value.constant == above.count[0]:
        return e.bind(_fitted(above, e.shapes[0]), _fitted(_scaled(below, above.count[1] / above.count[0]), e.shapes[0]))
    return e.bind(*(_fitted(known, e.shapes[0]) for known in e.ins))


def _product(e: _Equation) -> list[Any]:
    """A mean may also multiply by one over it."""
    factors = list(e.ins)
    for k, other in ((0, 1), (1, 0)):
        count, constant = factors[other].count, factors[k].value.constant
        if count is not None and constant is not None and math.isclose(constant * count[0], 1, rel_tol=1e-6):
            factors[k] = _scaled(factors[k], count[0] / count[1])
    return e.bind(*(_fitted(known, e.shapes[0]) for known in factors))


CHANGED: Mapping[str, Callable[[_Equation], list[Any]]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "iota": _iota,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "concatenate": _concatenate,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _overwrite,
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max"), _overwrite),
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "div": _quotient,
    "mul": _product,
}


def _offset(e: _Equation, value: Value, d: int, place: int) -> int:
    term: Term | None = value.axes[d]
    return place if term is None else e.sizes.offset(term, place)


def _scaled(known: _Known, factor: float) -> _Known:
    x = jnp.asarray(known.array)
    return _Known(x * jnp.asarray(factor, x.dtype), known.value)


def _is_elementwise(jaxpr: Jaxpr) -> bool:
    """Whether each element of the results depends on the same element of the operands alone."""
    shapes = {getattr(v.aval, "shape", None) for v in (*jaxpr.invars, *jaxpr.outvars)}
    inner = [nested(eqn) for eqn in jaxpr.eqns]
    return len(shapes) == 1 and all(
        _is_elementwise(called.jaxpr) if called is not None else _rule_module(eqn).endswith(".elementwise")
        for eqn, called in zip(jaxpr.eqns, inner, strict=True)
    )


def _rule_module(eqn: JaxprEqn) -> str:
    return getattr(RULES.get(eqn.primitive.name), "__module__", "")


def _in_pieces(e: _Equation) -> list[Any]:
    """A function with a derivative of its own, which is written for one shape: piece by piece of that many elements."""
    old, shape = e.ins[0].value.shape, e.shapes[0]
    pieces = -(-math.prod(shape) // math.prod(old))

    def cut(known: _Known) -> Array:
        flat = jnp.ravel(_fitted(known, shape))
        return jnp.pad(flat, (0, pieces * math.prod(old) - flat.size)).reshape(pieces, *old)

    outs = jax.vmap(functools.partial(evaluated, e.eqn, e.whole))(*map(cut, e.ins))
    return [jnp.ravel(out)[: math.prod(shape)].reshape(shape) for out in outs]
