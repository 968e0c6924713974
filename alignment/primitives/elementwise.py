"""Elementwise operations: the axes of all operands move together; the operation decides what else may act."""

from collections.abc import Callable

import jax.numpy as jnp

from alignment.primitives.registry import Axes, Equation, fixed, restrict, rule, unsupported
from alignment.unification.algebra import Terms
from alignment.unification.terms import Group, Term


def _pointwise(terms: Terms, eqn: Equation, group_at: Callable[[int, int], Group]) -> list[Axes]:
    """Tie the axes of elementwise operands; `group_at(named, uniform)` is what an axis with so many operands allows."""
    (out,) = eqn.outs
    axes: list[Term | None] = []
    for d in range(len(out)):
        named = [t for v in eqn.ins if v.shape and (t := v.axes[d]) is not None]
        uniform = sum(1 for v in eqn.ins if not v.zero and (not v.shape or v.axes[d] is None))
        for other in named[1:]:
            terms.unify(named[0], other)
        restrict(terms, named[0] if named else None, group_at(len(named), uniform))
        axes.append(named[0] if named else None)
    return [tuple(axes)]


@rule("convert_element_type")
def _cast(terms: Terms, eqn: Equation) -> list[Axes]:
    if not jnp.issubdtype(eqn.params["new_dtype"], jnp.inexact):
        for term in eqn.ins[0].axes:
            restrict(terms, term, Group.PERMUTATION)
    return [eqn.ins[0].axes]


@rule("neg", "copy", "copy_p", "reduce_precision", "stop_gradient", "real", "imag", "conj", "name", "sharding_constraint")
def _linear_unary(terms: Terms, eqn: Equation) -> list[Axes]:
    return [eqn.ins[0].axes]


@rule("bitcast_convert_type")
def _bitcast(terms: Terms, eqn: Equation) -> list[Axes]:
    if eqn.ins[0].shape != eqn.outs[0]:
        return unsupported(terms, eqn)
    return _pointwise(terms, eqn, lambda named, uniform: Group.PERMUTATION)


@rule(
    *("random_bits", "random_seed", "random_wrap", "random_unwrap", "random_fold_in", "random_split"),
    *("threefry2x32", "rng_bit_generator"),
)
def _random(terms: Terms, eqn: Equation) -> list[Axes]:
    """Keys hold no features."""
    return [fixed(terms, shape, "random numbers") for shape in eqn.outs]


@rule("debug_callback", "debug_print")
def _debug(terms: Terms, eqn: Equation) -> list[Axes]:
    """Looking on changes nothing."""
    return []


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
    *("eq", "ne", "lt", "le", "gt", "ge", "clamp", "lgamma", "digamma", "population_count", "clz"),
    *("shift_left", "shift_right_logical", "shift_right_arithmetic", "complex"),
    *("igamma", "igammac", "bessel_i0e", "bessel_i1e"),
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
    axes = _pointwise(terms, eqn, lambda named, uniform: Group.LINEAR)
    for divisor in eqn.ins[1].axes:
        restrict(terms, divisor, Group.PERMUTATION)
    return axes


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
            restrict(terms, term, Group.PERMUTATION)
            if term is not None:
                terms.unify(term, chosen)
        out.append(term if term is not None else chosen)
    return [tuple(out)]
