"""Constants that a program computes on the way: the number is what numpy computes, and None where it is not one number."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alignment.primitives import Value
from alignment.tracing.constants import folded, is_square

LIKE = jax.ShapeDtypeStruct((2, 3), jnp.float32)
ARITHMETIC = {  # of arrays all of whose elements are 5 and, of the second, 2
    "add": lax.add,
    "sub": lax.sub,
    "mul": lax.mul,
    "div": lax.div,
    "pow": lax.pow,
    "neg": lambda a, b: lax.neg(a),
    "sqrt": lambda a, b: lax.sqrt(a),
    "rsqrt": lambda a, b: lax.rsqrt(a),
    "log": lambda a, b: lax.log(a),
    "square": lambda a, b: lax.square(a),
    "third_power": lambda a, b: lax.integer_pow(a, 3),
    "inverse": lambda a, b: lax.integer_pow(a, -1),
    "sum_of_one_axis": lambda a, b: a.sum(1),
    "sum": lambda a, b: a.sum(),
    "shape": lambda a, b: a.reshape(6),
    "padded_with_itself": lambda a, b: lax.pad(a, np.float32(5), ((1, 0, 0), (0, 0, 0))),
    "whole_numbers": lambda a, b: lax.div(lax.convert_element_type(a, jnp.int32), np.int32(2)),
}
NONE = {
    "padded_with_another": lambda a, b: lax.pad(a, np.float32(0), ((1, 0, 0), (0, 0, 0))),
    "not_a_number": lambda a, b: lax.log(-a),
    "infinity_less_itself": lambda a, b: a * np.float32(np.inf) - a * np.float32(np.inf),
    "unknown_to_it": lambda a, b: lax.tanh(a),
    "a_comparison": lambda a, b: lax.gt(a, b),
    "truth": lambda a, b: lax.convert_element_type(a, jnp.bool_),
    "complex": lambda a, b: lax.complex(a, b),
}


def constant(program, *known):
    """What is known of the result when the elements of its operands are."""
    jaxpr = jax.make_jaxpr(program)(LIKE, LIKE).jaxpr
    values = {x: Value((2, 3), (None, None), constant=c) for x, c in zip(jaxpr.invars, known, strict=True)}
    for eqn in jaxpr.eqns:
        literals = (Value((), (), constant=float(x.val)) if hasattr(x, "val") else values[x] for x in eqn.invars)
        (out,) = eqn.outvars
        values[out] = Value(out.aval.shape, (None,) * out.aval.ndim, constant=folded(eqn, list(literals)))
    return values[jaxpr.outvars[0]].constant


@pytest.mark.parametrize("name", ARITHMETIC)
def test_constants_are_computed_as_the_program_does(name):
    program = ARITHMETIC[name]
    (computed,) = np.unique(program(jnp.full((2, 3), 5.0), jnp.full((2, 3), 2.0)))
    assert constant(program, 5.0, 2.0) == pytest.approx(float(computed), rel=1e-6)
    assert constant(program, None, 2.0) is None


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_number_or_not_one_is_none(name):
    assert constant(NONE[name], 5.0, 2.0) is None


def test_one_operand_that_is_not_constant_is_enough():
    assert constant(lax.mul, 5.0, None) is None
    assert math.isinf(constant(lax.div, 5.0, 0.0))


@pytest.mark.parametrize(
    ("program", "square"),
    [
        (lambda a, b: lax.square(a), True),
        (lambda a, b: a * a, True),
        (lambda a, b: lax.integer_pow(a, 2), True),
        (lambda a, b: lax.integer_pow(a, 3), False),
        (lambda a, b: a * b, False),
        (lambda a, b: a + a, False),
    ],
)
def test_squares_are_told_by_what_is_multiplied(program, square):
    (eqn,) = jax.make_jaxpr(program)(LIKE, LIKE).jaxpr.eqns
    assert is_square(eqn) is square
