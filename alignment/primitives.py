"""One rule per primitive: how the axes of an equation's operands and results transform together.

A rule receives the store of terms and an `Equation` and returns, for each result, one entry per axis: a term, or None for
an axis along which the value is uniform (a broadcast), so that every map that keeps a constant vector keeps it. On the way
it unifies what must transform alike, restricts groups (a nonlinearity leaves permutations only) and pins what the
operation tells apart. A primitive without a rule pins every axis it touches; `rule` teaches it from outside:

    @alignment.primitives.rule("my_primitive")
    def _(terms, eqn):
        return [eqn.ins[0].axes]
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from alignment.terms import Group, Prod, Term, Terms, dual, product, sequence

Axes = tuple[Term | None, ...]


@dataclass(frozen=True)
class Value:
    """What the tracer knows of an array: a term (or None: uniform) per axis, and where its numbers come from."""

    shape: tuple[int, ...]
    axes: Axes
    data: bool = False  # depends on the inputs, not only on the variables
    zero: bool = False  # is identically zero


@dataclass(frozen=True)
class Equation:
    """One equation of a jaxpr, seen through the tracer's values."""

    name: str
    params: Mapping[str, Any]
    ins: Sequence[Value]
    outs: Sequence[tuple[int, ...]]


Rule = Callable[[Terms, Equation], list[Axes]]
RULES: dict[str, Rule] = {}
KEEPS_ZERO = {"broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "transpose", "copy", "neg", "pad", "slice"}


UNSUPPORTED = "unsupported primitive"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the primitives of these names, replacing an older one."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def unsupported(terms: Terms, eqn: Equation) -> list[Axes]:
    """Pin every axis of every operand and result: nothing is guessed."""
    reason = f"{UNSUPPORTED} {eqn.name!r}"
    for value in eqn.ins:
        for term in value.axes:
            if term is not None:
                terms.pin(term, reason)
    return [fixed(terms, shape, reason) for shape in eqn.outs]


def fixed(terms: Terms, shape: Sequence[int], reason: str) -> Axes:
    """Fresh pinned terms for an array of this shape."""
    return tuple(terms.fresh(n, pin=reason) for n in shape)


def _hold(terms: Terms, term: Term | None, size: int, reason: str) -> Term:
    """Pin an axis on its way in and return a pinned one of `size` for the way out."""
    if term is not None:
        terms.pin(term, reason)
    return terms.fresh(size, pin=reason)


def _concrete(terms: Terms, value: Value, axis: int) -> Term:
    """The term of an axis; a uniform axis becomes an atom that may be permuted (or anything, where it is all zero)."""
    term = value.axes[axis]
    if term is not None:
        return term
    return _filler(terms, value.shape[axis], zero=value.zero)


def _filler(terms: Terms, size: int, *, zero: bool) -> Term:
    """Features that are all equal: anything may act on zeros, permutations of their own on any other constant."""
    return terms.fresh(size) if zero else terms.fresh(size, group=Group.PERMUTATION, alone=True)


def _restrict_uniform(terms: Terms, term: Term | None, group: Group) -> None:
    if term is not None:
        terms.restrict(term, group)


# --------------------------------------------------------------------------------------------- elementwise


def _pointwise(terms: Terms, eqn: Equation, group_at: Callable[[int, int], Group]) -> list[Axes]:
    """Tie the axes of elementwise operands; `group_at(named, uniform)` is what an axis with so many operands allows."""
    (out,) = eqn.outs
    axes: list[Term | None] = []
    for d in range(len(out)):
        named = [t for v in eqn.ins if v.shape and (t := v.axes[d]) is not None]
        uniform = sum(1 for v in eqn.ins if not v.zero and (not v.shape or v.axes[d] is None))
        for other in named[1:]:
            terms.unify(named[0], other)
        _restrict_uniform(terms, named[0] if named else None, group_at(len(named), uniform))
        axes.append(named[0] if named else None)
    return [tuple(axes)]


@rule("convert_element_type")
def _cast(terms: Terms, eqn: Equation) -> list[Axes]:
    if not jnp.issubdtype(eqn.params["new_dtype"], jnp.inexact):
        for term in eqn.ins[0].axes:
            _restrict_uniform(terms, term, Group.PERMUTATION)
    return [eqn.ins[0].axes]


@rule("neg", "copy", "copy_p", "reduce_precision", "stop_gradient", "real", "imag", "conj", "name")
def _linear_unary(terms: Terms, eqn: Equation) -> list[Axes]:
    return [eqn.ins[0].axes]


@rule("optimization_barrier")
def _barrier(terms: Terms, eqn: Equation) -> list[Axes]:
    return [value.axes for value in eqn.ins]


@rule("abs")
def _homogeneous_unary(terms: Terms, eqn: Equation) -> list[Axes]:
    return _pointwise(terms, eqn, lambda named, uniform: Group.SCALE)


@rule(
    *("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc", "erf_inv", "sqrt", "rsqrt", "cbrt"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "integer_pow", "pow"),
    *("square", "sign", "floor", "ceil", "round", "is_finite", "not", "and", "or", "xor", "rem", "atan2", "nextafter"),
    *("eq", "ne", "lt", "le", "gt", "ge", "clamp", "lgamma", "digamma", "population_count", "shift_left"),
)
def _nonlinear(terms: Terms, eqn: Equation) -> list[Axes]:
    return _pointwise(terms, eqn, lambda named, uniform: Group.PERMUTATION)


@rule("add", "sub", "add_any")
def _additive(terms: Terms, eqn: Equation) -> list[Axes]:
    # features plus the same number everywhere: only permutations keep a constant vector
    return _pointwise(terms, eqn, lambda named, uniform: Group.PERMUTATION if uniform else Group.LINEAR)


@rule("mul")
def _multiplicative(terms: Terms, eqn: Equation) -> list[Axes]:
    return _pointwise(terms, eqn, lambda named, uniform: Group.PERMUTATION if named > 1 else Group.LINEAR)


@rule("div")
def _quotient(terms: Terms, eqn: Equation) -> list[Axes]:
    above, below = eqn.ins
    divided = [not below.shape or t is None for t in (below.axes or [None] * len(above.shape))]
    axes = _pointwise(terms, eqn, lambda named, uniform: Group.LINEAR)[0]
    for term, plain in zip(axes, divided or [True] * len(axes), strict=True):
        _restrict_uniform(terms, term, Group.LINEAR if plain else Group.PERMUTATION)
    return [axes]


@rule("max", "min")
def _extremum(terms: Terms, eqn: Equation) -> list[Axes]:
    # max(s x, s y) = s max(x, y) for s > 0; a bound other than zero has a scale of its own
    return _pointwise(terms, eqn, lambda named, uniform: Group.PERMUTATION if uniform else Group.SCALE)


@rule("select_n")
def _select(terms: Terms, eqn: Equation) -> list[Axes]:
    which, *cases = eqn.ins
    axes = _additive(terms, Equation("select_n", {}, cases, eqn.outs))[0]
    if not which.shape:
        return [axes]
    out: list[Term | None] = []
    for chosen, term in zip(which.axes, axes, strict=True):
        if chosen is not None:  # the choice depends on the unit
            terms.restrict(chosen, Group.PERMUTATION)
            _restrict_uniform(terms, term, Group.PERMUTATION)
            if term is not None:
                terms.unify(term, chosen)
        out.append(term if term is not None else chosen)
    return [tuple(out)]


# --------------------------------------------------------------------------------------------- layout


@rule("broadcast_in_dim")
def _broadcast(terms: Terms, eqn: Equation) -> list[Axes]:
    axes: list[Term | None] = [None] * len(eqn.outs[0])
    for d, o in enumerate(eqn.params["broadcast_dimensions"]):
        if eqn.ins[0].shape[d] == eqn.outs[0][o]:
            axes[o] = eqn.ins[0].axes[d]
    return [tuple(axes)]


@rule("transpose")
def _transpose(terms: Terms, eqn: Equation) -> list[Axes]:
    return [tuple(eqn.ins[0].axes[d] for d in eqn.params["permutation"])]


@rule("squeeze")
def _squeeze(terms: Terms, eqn: Equation) -> list[Axes]:
    gone = {d % len(eqn.ins[0].shape) for d in eqn.params["dimensions"]}
    return [tuple(t for d, t in enumerate(eqn.ins[0].axes) if d not in gone)]


@rule("reshape")
def _reshape(terms: Terms, eqn: Equation) -> list[Axes]:
    value, new = eqn.ins[0], eqn.outs[0]
    out: list[Term | None] = []
    if 0 in new:
        return [fixed(terms, new, "axis of size zero")]
    for old_dims, new_dims in _matching_runs(value.shape, new):
        sizes = [new[d] for d in new_dims]
        if all(value.axes[d] is None or value.shape[d] == 1 for d in old_dims):
            out += [None] * len(sizes)
            continue
        whole = product([_concrete(terms, value, d) for d in old_dims])
        pieces = terms.factor(whole, sizes)
        if pieces is None:
            reason = "reshape across a structured axis"
            terms.pin(whole, reason)
            pieces = [terms.fresh(n, pin=reason) for n in sizes]
        out += pieces
    return [tuple(out)]


def _matching_runs(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """The shortest runs of old and new dimensions with equal products, in order; together they cover both shapes."""
    runs, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        i0, j0 = i, j
        left, right = 1, 1
        while True:
            if left == right and (i > i0 or j > j0):
                break
            if left <= right and i < len(old):
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        runs.append((range(i0, i), range(j0, j)))
    return runs


@rule("concatenate")
def _concatenate(terms: Terms, eqn: Equation) -> list[Axes]:
    along = eqn.params["dimension"]
    axes: list[Term | None] = []
    for d in range(len(eqn.outs[0])):
        if d == along:
            axes.append(sequence([_concrete(terms, v, d) for v in eqn.ins if v.shape[d]]))
            continue
        named = [t for v in eqn.ins if (t := v.axes[d]) is not None]
        for other in named[1:]:
            terms.unify(named[0], other)
        if named and any(v.axes[d] is None and not v.zero for v in eqn.ins):
            terms.restrict(named[0], Group.PERMUTATION)
        axes.append(named[0] if named else None)
    return [tuple(axes)]


@rule("pad")
def _pad(terms: Terms, eqn: Equation) -> list[Axes]:
    value, filler = eqn.ins
    axes: list[Term | None] = []
    for d, config in enumerate(eqn.params["padding_config"]):
        low, high, interior = map(int, config)
        term, n = value.axes[d], eqn.outs[0][d]
        if (low, high, interior) == (0, 0, 0):
            axes.append(term)
        elif min(low, high) < 0 or interior:
            axes.append(_hold(terms, term, n, "padded inside or cropped"))
        else:
            ends = [_filler(terms, w, zero=filler.zero) if w else Prod(()) for w in (low, high)]
            parts = [*ends[: low > 0], _concrete(terms, value, d), *ends[1 : 1 + (high > 0)]]
            axes.append(sequence(parts))
    return [tuple(axes)]


@rule("slice")
def _slice(terms: Terms, eqn: Equation) -> list[Axes]:
    value, start, limit = eqn.ins[0], eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or [1] * len(start)
    axes: list[Term | None] = []
    for d, (a, b, step) in enumerate(zip(start, limit, strides, strict=True)):
        if step == 1:
            axes.append(_window(terms, value.axes[d], value.shape[d], int(a), int(b)))
        else:
            axes.append(value.axes[d] and _hold(terms, value.axes[d], eqn.outs[0][d], "strided slice"))
    return [tuple(axes)]


@rule("split")
def _split(terms: Terms, eqn: Equation) -> list[Axes]:
    along, value, stop = eqn.params["axis"], eqn.ins[0], 0
    out = []
    for width in map(int, eqn.params["sizes"]):
        start, stop = stop, stop + width
        piece = _window(terms, value.axes[along], value.shape[along], start, stop)
        out.append((*value.axes[:along], piece, *value.axes[along + 1 :]))
    return out


@rule("top_k", "approx_top_k")
def _top_k(terms: Terms, eqn: Equation) -> list[Axes]:
    value, shape = eqn.ins[0], eqn.outs[0]
    along = eqn.params.get("axis", eqn.params.get("reduction_dimension", -1)) % len(shape)
    axes = list(value.axes)
    for d, term in enumerate(axes):
        _restrict_uniform(terms, term, Group.PERMUTATION)
        if d == along:
            axes[d] = _hold(terms, term, shape[d], "ranked along this axis")
    return [tuple(axes)] * len(eqn.outs)


@rule("sort")
def _sort(terms: Terms, eqn: Equation) -> list[Axes]:
    along = eqn.params["dimension"]
    first, *rest = [list(v.axes) for v in eqn.ins]
    for axes in (first, *rest):
        for d, term in enumerate(axes):
            _restrict_uniform(terms, term, Group.PERMUTATION)
            if d == along:
                axes[d] = _hold(terms, term, eqn.outs[0][d], "ranked along this axis")
            elif term is not None and (same := first[d]) is not None:
                terms.unify(same, term)
    return [tuple(first), *map(tuple, rest)]


def _window(terms: Terms, term: Term | None, size: int, start: int, stop: int) -> Term | None:
    """The part [start, stop) of an axis."""
    if term is None or (start, stop) == (0, size):
        return term
    if start == stop:
        return terms.fresh(0, pin="axis of size zero")
    widths = [w for w in (start, stop - start, size - stop) if w]
    pieces = terms.cut(term, widths)
    if pieces is None:
        return _hold(terms, term, stop - start, "slice across a structured axis")
    return pieces[1 if start else 0]


@rule("dynamic_slice")
def _dynamic_slice(terms: Terms, eqn: Equation) -> list[Axes]:
    value = eqn.ins[0]
    whole = [value.shape[d] == n for d, n in enumerate(eqn.outs[0])]
    return [
        tuple(
            t if keep or t is None else _hold(terms, t, n, "sliced at a computed place")
            for t, n, keep in zip(value.axes, eqn.outs[0], whole, strict=True)
        )
    ]


@rule("rev")
def _reverse(terms: Terms, eqn: Equation) -> list[Axes]:
    turned = eqn.params["dimensions"]
    return [
        tuple(
            _hold(terms, t, n, "reversed") if d in turned and t is not None else t
            for d, (t, n) in enumerate(zip(eqn.ins[0].axes, eqn.outs[0], strict=True))
        )
    ]


@rule("iota")
def _iota(terms: Terms, eqn: Equation) -> list[Axes]:
    shape = eqn.outs[0]
    return [tuple(terms.fresh(n, pin="position") if d == eqn.params["dimension"] else None for d, n in enumerate(shape))]


@rule("gather")
def _gather(terms: Terms, eqn: Equation) -> list[Axes]:
    numbers = eqn.params["dimension_numbers"]
    if numbers.operand_batching_dims:
        return unsupported(terms, eqn)
    table, indices = eqn.ins[:2]
    windows = iter([d for d in range(len(table.shape)) if d not in numbers.collapsed_slice_dims])
    batch = iter(indices.axes[:-1])
    for d in numbers.collapsed_slice_dims:
        if table.axes[d] is not None:
            terms.pin(table.axes[d], "looked up by index")
    axes: list[Term | None] = []
    for o, n in enumerate(eqn.outs[0]):
        if o not in numbers.offset_dims:
            axes.append(next(batch))
            continue
        d = next(windows)
        term = table.axes[d]
        axes.append(term if term is None or table.shape[d] == n else _hold(terms, term, n, "gathered in part"))
    return [tuple(axes)]


# --------------------------------------------------------------------------------------------- reductions


def _reduction(kept_group: Group) -> Rule:
    def reduce(terms: Terms, eqn: Equation) -> list[Axes]:
        gone = eqn.params["axes"]
        for d, term in enumerate(eqn.ins[0].axes):
            _restrict_uniform(terms, term, Group.PERMUTATION if d in gone else kept_group)
        return [tuple(t for d, t in enumerate(eqn.ins[0].axes) if d not in gone)]

    return reduce


rule("reduce_sum")(_reduction(Group.LINEAR))
rule("reduce_max", "reduce_min")(_reduction(Group.SCALE))
rule("reduce_prod", "reduce_and", "reduce_or", "reduce_xor")(_reduction(Group.PERMUTATION))


@rule("argmax", "argmin")
def _arg_reduction(terms: Terms, eqn: Equation) -> list[Axes]:
    for d in eqn.params["axes"]:
        if (term := eqn.ins[0].axes[d]) is not None:
            terms.pin(term, "position of an extremum")
    return _reduction(Group.PERMUTATION)(terms, eqn)


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulative(terms: Terms, eqn: Equation) -> list[Axes]:
    along = eqn.params["axis"]
    group = Group.LINEAR if eqn.name == "cumsum" else Group.PERMUTATION
    axes = list(eqn.ins[0].axes)
    for d, term in enumerate(axes):
        _restrict_uniform(terms, term, group)
        if d == along:
            axes[d] = _hold(terms, term, eqn.outs[0][d], "order matters along this axis")
    return [tuple(axes)]


@rule("reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_window")
def _pool(terms: Terms, eqn: Equation) -> list[Axes]:
    p, value = eqn.params, eqn.ins[0]
    kept_group = Group.LINEAR if eqn.name == "reduce_window_sum" else Group.SCALE
    if eqn.name == "reduce_window":
        kept_group = Group.PERMUTATION
    axes: list[Term | None] = []
    for d, term in enumerate(value.axes):
        untouched = p["window_dimensions"][d] == 1 and value.shape[d] == eqn.outs[0][d] and p["padding"][d] == (0, 0)
        if untouched:
            _restrict_uniform(terms, term, kept_group)
            axes.append(term)
        else:
            axes.append(_hold(terms, term, eqn.outs[0][d], "pooled position"))
    return [tuple(axes)] * len(eqn.outs)


# --------------------------------------------------------------------------------------------- contractions


@rule("dot_general")
def _dot_general(terms: Terms, eqn: Equation) -> list[Axes]:
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    lhs, rhs = eqn.ins
    for a, b in zip(lc, rc, strict=True):
        _contract(terms, lhs.axes[a], rhs.axes[b])
    batch: list[Term | None] = []
    for a, b in zip(lb, rb, strict=True):
        left, right = lhs.axes[a], rhs.axes[b]
        if left is not None and right is not None:
            terms.unify(left, right)
            terms.restrict(left, Group.PERMUTATION)
        batch.append(left if left is not None else right)
    free = [lhs.axes[d] for d in range(len(lhs.shape)) if d not in (*lc, *lb)]
    free += [rhs.axes[d] for d in range(len(rhs.shape)) if d not in (*rc, *rb)]
    return [(*batch, *free)]


def _contract(terms: Terms, left: Term | None, right: Term | None) -> None:
    """Sum over an axis: one side transforms by the inverse transpose of the other."""
    if left is not None and right is not None:
        terms.unify(left, dual(right))
    else:  # contracting with a constant vector is a plain sum
        _restrict_uniform(terms, left if left is not None else right, Group.PERMUTATION)


@rule("conv_general_dilated")
def _convolution(terms: Terms, eqn: Equation) -> list[Axes]:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] > 1:
        return unsupported(terms, eqn)
    lhs, rhs = eqn.ins
    channels, made = lhs.axes[numbers.lhs_spec[1]], _concrete(terms, rhs, numbers.rhs_spec[0])
    inner = rhs.axes[numbers.rhs_spec[1]]
    if groups == 1:
        _contract(terms, channels, inner)
    else:  # one block of channels per group: groups move as wholes, and alike inside each
        width = math.prod(lhs.shape[d] for d in numbers.lhs_spec[1:2]) // groups
        block = terms.fresh(groups, group=Group.PERMUTATION)
        within = dual(inner) if inner is not None else terms.fresh(width, group=Group.PERMUTATION)
        if channels is not None:
            terms.unify(channels, product([block, within]))
        terms.unify(made, product([block, terms.fresh(rhs.shape[numbers.rhs_spec[0]] // groups)]))
    for v, dims in ((lhs, numbers.lhs_spec[2:]), (rhs, numbers.rhs_spec[2:])):
        for d in dims:
            if v.axes[d] is not None:
                terms.pin(v.axes[d], "position under a convolution")
    axes = list(fixed(terms, eqn.outs[0], "position under a convolution"))
    out: list[Term | None] = [*axes]
    out[numbers.out_spec[0]], out[numbers.out_spec[1]] = lhs.axes[numbers.lhs_spec[0]], made
    return [tuple(out)]
