"""Operations of a traced program, counted on its jaxpr.

An operation is one addition, multiplication, division, comparison, choice or elementary function of two numbers or one,
whatever their type: a merge that compares bit patterns costs what it compares. A multiply-add is two. Moving, converting and
reading data is none.
"""

import math
from collections.abc import Callable
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxprs_in_params

from alignment.budget.costs import places_read

FREE = frozenset((
    "bitcast_convert_type", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p", "device_put",
    "dynamic_slice", "dynamic_update_slice", "empty", "empty2", "gather", "iota", "pad", "random_seed", "random_unwrap",
    "random_wrap", "reduce_precision", "reshape", "rev", "scatter", "sharding_constraint", "slice", "split", "squeeze",
    "stop_gradient", "transpose", "unstack",
))  # fmt: skip
RANDOM_BITS = 56
"""Operations for 32 random bits: 20 rounds of Threefry make two such words, by an addition, a rotation and an xor each."""


def operations(program: Jaxpr | ClosedJaxpr) -> float:
    """Operations of a program.

    Loops count as often as they run; those whose number of steps depends on the values count once. Of a conditional the
    largest branch counts. Decompositions count as the textbook algorithms do (Golub and Van Loan, with vectors).
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(eqn: JaxprEqn) -> float:
    name = eqn.primitive.name
    if name in FREE:
        return 0
    if name in RULES:
        return RULES[name](eqn)
    if inner := list(jaxprs_in_params(eqn.params)):
        return sum(map(operations, inner))
    return sum(_size(v) for v in eqn.outvars)


def _shape(v: Any) -> tuple[int, ...]:
    return getattr(v.aval, "shape", ())


def _size(v: Any) -> int:
    return math.prod(_shape(v))


def _inputs(eqn: JaxprEqn) -> float:
    return _size(eqn.invars[0])


def _scan(eqn: JaxprEqn) -> float:
    return eqn.params["length"] * operations(eqn.params["jaxpr"])


def _cond(eqn: JaxprEqn) -> float:
    return max(map(operations, eqn.params["branches"]))


def _dot_general(eqn: JaxprEqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return 2 * _size(eqn.outvars[0]) * math.prod(_shape(eqn.invars[0])[d] for d in contracted)


def _convolution(eqn: JaxprEqn) -> float:
    (image, kernel), out, p = map(_shape, eqn.invars), _shape(eqn.outvars[0]), eqn.params
    numbers = p["dimension_numbers"]
    count = 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    for d, (low, _) in enumerate(p["padding"]):
        sizes = image[numbers.lhs_spec[2 + d]], kernel[numbers.rhs_spec[2 + d]], out[numbers.out_spec[2 + d]]
        count *= places_read(*sizes, low, (p["window_strides"][d], p["rhs_dilation"][d], p["lhs_dilation"][d]))
    return count


def _of_matrices(count: Callable[[int, int], float]) -> Callable[[JaxprEqn], float]:
    """`count` of the longer and the shorter side, for each matrix of the first operand."""

    def rule(eqn: JaxprEqn) -> float:
        *batch, m, n = _shape(eqn.invars[0])
        return math.prod(batch) * count(max(m, n), min(m, n))

    return rule


def _triangular_solve(eqn: JaxprEqn) -> float:
    return _size(eqn.outvars[0]) * _shape(eqn.invars[0])[-1]


def _sort(eqn: JaxprEqn) -> float:
    return _inputs(eqn) * math.ceil(math.log2(max(_shape(eqn.invars[0])[eqn.params["dimension"]], 2)))


REDUCTIONS = (
    "argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum",
    "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum",
)  # fmt: skip
RULES: dict[str, Callable[[JaxprEqn], float]] = {
    **dict.fromkeys(REDUCTIONS, _inputs),
    "scan": _scan,
    "cond": _cond,
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "svd": _of_matrices(lambda m, n: 14 * m * n**2 + 8 * n**3),
    "eigh": _of_matrices(lambda m, n: 9 * n**3),
    "qr": _of_matrices(lambda m, n: 4 * n**2 * (m - n / 3)),
    "geqrf": _of_matrices(lambda m, n: 2 * n**2 * (m - n / 3)),
    "householder_product": _of_matrices(lambda m, n: 2 * n**2 * (m - n / 3)),
    "lu": _of_matrices(lambda m, n: n**2 * (m - n / 3)),
    "cholesky": _of_matrices(lambda m, n: n**3 / 3),
    "triangular_solve": _triangular_solve,
    "sort": _sort,
    "random_bits": lambda eqn: RANDOM_BITS * _size(eqn.outvars[0]) * eqn.params["bit_width"] / 32,
    "scatter-add": lambda eqn: _size(eqn.invars[2]),
}
