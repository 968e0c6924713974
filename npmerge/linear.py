"""Linear merges: a choice of coefficients, and `combine`, which they all apply."""

from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree, path_name
from alignment.names import is_statistic
from npmerge.arithmetic import column, mean, summed, wide
from npmerge.base import Merge, check_of_models
from npmerge.lora_stack import LoraStack
from npmerge.stack import Stack


class LinearMerge(Merge):
    """A merge that is a choice of coefficients: theta holds one array per leaf that broadcasts against (models, ...).

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Last(nm.LinearMerge):
        ...     def init(self, stack, *, stats=None, key=None):
        ...         return jax.tree.map(lambda x: jnp.eye(len(x))[-1].reshape(-1, *(1,) * (x.ndim - 1)), stack.params)
        >>> stack = nm.stack_models([{"w": jnp.array([w])} for w in (1.0, 2.0, 9.0)])
        >>> print(Last()(stack)["w"])
        [9.]
        >>> nm.Learned(Last(), nm.PerParameter(), nm.Free()).init(stack)["w"].shape  # it can be learned at once
        (3, 1)
    """

    @property
    def program(self) -> Hashable:
        """One for all linear merges, with a base or without: what they differ in is their coefficients."""
        return (LinearMerge, self.needs_base) if type(self).apply is LinearMerge.apply else self

    def apply(self, theta: PyTree, stack: Stack) -> PyTree:
        """`combine`, with the base only where the method is defined by it."""
        return merged_by(theta, stack, needs_base=self.needs_base)


def merged_by(coefficients: PyTree, stack: Stack | LoraStack, *, needs_base: bool) -> PyTree:
    """The linear merge with these coefficients: of task vectors, or of the models themselves; of adapters in low rank."""
    if isinstance(stack, LoraStack):
        return stack.combined(coefficients, needs_base=needs_base)
    return combine(coefficients, stack if needs_base else Stack(stack.params))


def combine(coefficients: PyTree, stack: Stack) -> PyTree:
    """Base + sum_m c_m * (params_m - base), or sum_m c_m * params_m without a base.

    Computed in float32 (or wider) and rounded once to the stored dtype. Running statistics are averaged whatever the
    coefficients: they are no weights; re-estimate them from data afterwards (`reset_statistics`).

    Args:
        coefficients: for each leaf of the stack an array that broadcasts against its shape (models, ...).
        stack: the models, and the base.

    Raises:
        ValueError: coefficients of another number of models (the path is named).

    Example:
        >>> models = [{"w": jnp.array([2.0, 2.0])}, {"w": jnp.array([0.0, 4.0])}]
        >>> stack = nm.stack_models(models, base={"w": jnp.ones(2)})
        >>> coefficients = {"w": jnp.array([[1.0], [0.5]])}  # one for each model, the same for all entries
        >>> print(nm.combine(coefficients, stack)["w"])
        [1.5 3.5]
        >>> print(jax.grad(lambda c: nm.combine(c, stack)["w"].sum())(coefficients)["w"])
        [[2.]
         [2.]]
    """

    def leaf(path: tuple, c: Array, x: Array, base: Array | None = None) -> Array:
        check_of_models(path_name(path), c, x)
        models = [wide(x[k]) for k in range(len(x))]
        if is_statistic(path_name(path)):
            return mean(models).astype(x.dtype)
        shares = jnp.unstack(jnp.broadcast_to(c, (len(x), *c.shape[1:])))  # c[k]: see `Constraint.mixed`
        if base is None:
            return summed([s.astype(w.dtype) * w for s, w in zip(shares, models, strict=True)]).astype(x.dtype)
        origin = wide(base)
        return (origin + summed([s.astype(w.dtype) * (w - origin) for s, w in zip(shares, models, strict=True)])).astype(
            x.dtype
        )

    bases = () if stack.base is None else (stack.base,)
    return jax.tree_util.tree_map_with_path(leaf, coefficients, stack.params, *bases)


def constant(stack: Stack, value: float | Float[np.ndarray, " models"]) -> PyTree:
    """One coefficient per model and tensor: the same for all tensors, and for all models if it is one number."""
    c = np.broadcast_to(np.asarray(value, np.float32), stack.size)
    return jax.tree.map(lambda x: column(c, x), stack.params)
