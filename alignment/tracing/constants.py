"""What one equation of a jaxpr says of numbers: which constant a result is, and whether it is a square."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from alignment.primitives import Value

KEEPS_CONSTANT = {"broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "transpose", "copy", "slice", "pad"}
ARITHMETIC: Mapping[str, Callable[..., float]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "neg": np.negative,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "log": np.log,
}


def folded(eqn: JaxprEqn, ins: Sequence[Value]) -> float | None:
    """The number that every element of the result of an equation is, where its operands say so."""
    name, constants, dtype = eqn.primitive.name, [v.constant for v in ins], getattr(eqn.outvars[0].aval, "dtype", None)
    known = [c for c in constants if c is not None]
    if not known or len(known) < len(constants) or dtype is None or not is_real(dtype):
        return None
    with np.errstate(all="ignore"):
        if name in KEEPS_CONSTANT:
            number = known[0] if len(set(known)) == 1 else math.nan
        elif name in ARITHMETIC:
            number = float(ARITHMETIC[name](*map(np.float64, known)))
        elif name == "integer_pow":
            number = float(np.float64(known[0]) ** eqn.params["y"])
        elif name == "reduce_sum":
            number = known[0] * math.prod(ins[0].shape[d] for d in eqn.params["axes"])
        else:
            return None
    if math.isnan(number):
        return None
    whole = math.isfinite(number) and not jnp.issubdtype(dtype, jnp.inexact)
    return float(math.trunc(number)) if whole else number


def is_real(dtype: Any) -> bool:
    """Whether elements of this dtype are real numbers."""
    return jnp.issubdtype(dtype, jnp.number) and not jnp.issubdtype(dtype, jnp.complexfloating)


def is_square(eqn: JaxprEqn) -> bool:
    """Whether the result is the square of the operand, element by element."""
    match eqn.primitive.name:
        case "square":
            return True
        case "integer_pow":
            return eqn.params["y"] == 2
        case "mul":
            return eqn.invars[0] is eqn.invars[1]
    return False
