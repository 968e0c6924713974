"""Weights as a base and a product of two thin matrices, multiplied without their sum being made."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal
from jaxtyping import Array, Float

from alignment.graph import PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class LowRank:
    """The matrix `times * base + left @ right`.

    Attributes:
        base: the weight that is shared.
        left: the first factor of the update.
        right: the second factor.
        times: what the base is multiplied by; 1 where it stays as it is.
    """

    base: Float[Array, "rows columns"]
    left: Float[Array, "rows r"]
    right: Float[Array, "r columns"]
    times: Float[Array, ""]

    def whole(self) -> Float[Array, "rows columns"]:
        """The sum, computed in float32 and rounded once to the dtype of the base."""
        wide = _wide(self.base)
        update = self.left.astype(wide) @ self.right.astype(wide)
        return (self.times.astype(wide) * self.base.astype(wide) + update).astype(self.base.dtype)

    def transposed(self) -> "LowRank":
        """Rows for columns."""
        return LowRank(self.base.T, self.right.T, self.left.T, self.times)


def materialised(tree: PyTree) -> PyTree:
    """The tree with every `LowRank` in it as an array."""
    return jax.tree.map(_whole, tree, is_leaf=_is_low_rank)


def with_low_rank(apply: Callable[..., Any]) -> Callable[..., Any]:
    """A network's function for weights that may be `LowRank`.

    Products of matrices are taken with base and factors one by one, W x + L (R x); transposed weights stay as they are. Any
    other operation on such a weight, one in a loop too, makes the whole of it.

    Args:
        apply: of arrays, traceable, such as `apply(params, inputs)`; keywords are passed on.

    Example:
        >>> from npmerge.low_rank import LowRank, with_low_rank
        >>> w = LowRank(jnp.eye(2), jnp.array([[1.0], [0.0]]), jnp.array([[0.0, 2.0]]), jnp.float32(1.0))
        >>> apply = lambda variables, x: x @ variables["w"]
        >>> print(with_low_rank(apply)({"w": w}, jnp.array([[1.0, 1.0]])))  # x base + (x left) right
        [[1. 3.]]
    """

    @functools.wraps(apply)
    def applied(*arguments: Any, **keywords: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments, is_leaf=_is_low_rank)
        abstract = [jax.ShapeDtypeStruct(jnp.shape(_base(x)), jnp.result_type(_base(x))) for x in leaves]

        def flat(*values: Any) -> Any:
            return apply(*jax.tree.unflatten(structure, values), **keywords)

        closed, shape = jax.make_jaxpr(flat, return_shape=True)(*abstract)
        found = [_whole(x) for x in _evaluated(closed.jaxpr, closed.consts, leaves)]
        return jax.tree.unflatten(jax.tree.structure(shape), found)

    return applied


def _evaluated(jaxpr: Any, constants: Any, arguments: list) -> list:
    """The outputs of a program, equation by equation."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def read(x: Any) -> Any:
        return x.val if isinstance(x, Literal) else values[x]

    for equation in jaxpr.eqns:
        outputs = _step(equation, [read(x) for x in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _step(equation: Any, inputs: list) -> list:
    name, parameters = equation.primitive.name, equation.params
    low = [_is_low_rank(x) for x in inputs]
    if any(low):
        if name in ("jit", "pjit"):
            return _evaluated(parameters["jaxpr"].jaxpr, parameters["jaxpr"].consts, inputs)
        if name == "transpose" and tuple(parameters["permutation"]) == (1, 0):
            return [inputs[0].transposed()]
        if name == "dot_general" and not all(low) and _is_plain(parameters["dimension_numbers"]):
            return [_product(inputs, low[0], parameters).astype(equation.outvars[0].aval.dtype)]
    bound = equation.primitive.get_bind_params(parameters)
    functions, rest = bound if isinstance(bound, tuple) else ((), bound)  # before and since JAX 0.10
    found = equation.primitive.bind(*functions, *map(_whole, inputs), **rest)
    return list(found) if equation.primitive.multiple_results else [found]


def _is_plain(numbers: Any) -> bool:
    (left, right), batch = numbers
    return len(left) == len(right) == 1 and not any(map(len, batch))


def _product(inputs: list, weight_first: bool, parameters: Any) -> Array:
    """The product of a low-rank weight and an array, the weight's free axis first or last as `dot_general` has it."""
    ((first,), (second,)), _ = parameters["dimension_numbers"]
    weight, x, axis, along = (*inputs, first, second) if weight_first else (*inputs[::-1], second, first)
    dtype = _wide(weight.base, x)
    inner, outer = (weight.left, weight.right) if axis == 0 else (weight.right.T, weight.left.T)
    dot = functools.partial(lax.dot_general, precision=parameters["precision"], preferred_element_type=dtype)

    def times(matrix: Array, y: Array, axis: int, along: int) -> Array:
        if weight_first:
            return dot(matrix, y, (((axis,), (along,)), ((), ())))
        return dot(y, matrix, (((along,), (axis,)), ((), ())))

    thin = times(inner.astype(dtype), x.astype(dtype), 0, along)
    update = times(outer.astype(dtype), thin, 0, 0 if weight_first else thin.ndim - 1)
    return weight.times.astype(dtype) * times(weight.base, x, axis, along) + update


def _wide(*arrays: Array) -> jnp.dtype:
    """What is computed in: float32, or float64 if one of the arrays is."""
    return jnp.dtype(jnp.float64 if any(x.dtype == jnp.float64 for x in arrays) else jnp.float32)


def _is_low_rank(x: Any) -> bool:
    return isinstance(x, LowRank)


def _base(x: Any) -> Any:
    return x.base if isinstance(x, LowRank) else x


def _whole(x: Any) -> Any:
    return x.whole() if isinstance(x, LowRank) else x
