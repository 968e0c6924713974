"""Adapters of low rank as a stack that linear merges, learned ones too, merge without the full weights of any model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.checks import check_list, unknown
from alignment.finite import check_finite
from alignment.graph import PyTree, flatten, path_name
from npmerge.low_rank import LowRank
from npmerge.stack import Stack

Factors = tuple[Float[Array, "rows r"], Float[Array, "r columns"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class LoraStack:
    """Models that differ from one base by updates of low rank: model m has `base + left[m] @ right[m]`.

    Stands where merges take a `Stack`, for those whose coefficients need no values of the models (averages, task arithmetic,
    `Learned` from either). What they give has a `LowRank` in place of each adapted weight: `with_low_rank(apply)` takes it.

    Attributes:
        base: the model that was adapted.
        left: (models, rows, r) by path; ranks are filled up with zeros.
        right: (models, r, columns) by path.

    Example:
        >>> from npmerge.lora import init_adapter, stack_adapters
        >>> base = {"w": jnp.eye(4)}
        >>> stack = stack_adapters([init_adapter(base, "w", 2, key=jax.random.key(k)) for k in range(3)], base)
        >>> stack.size, stack.left["w"].shape, nm.Average()(stack)["w"].left.shape
        (3, (3, 4, 2), (4, 6))
    """

    base: PyTree
    left: Mapping[str, Float[Array, "models rows r"]]
    right: Mapping[str, Float[Array, "models r columns"]]

    @property
    def size(self) -> int:
        """Number of models."""
        return next(iter(self.left.values())).shape[0]

    @property
    def params(self) -> PyTree:
        """Shapes and dtypes of the models side by side, without values."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.size, *x.shape), x.dtype), self.base)

    def combined(self, coefficients: PyTree, *, needs_base: bool) -> PyTree:
        """As `npmerge.linear.combine`, with adapted weights as `LowRank` of the sum of all ranks.

        Args:
            coefficients: for each leaf one array that broadcasts against (models, ...).
            needs_base: whether differences from the base are merged rather than the models themselves.

        Raises:
            ValueError: coefficients that differ along both axes of an adapted weight, or inside a tensor where models are
                merged rather than differences (the path is named).
        """

        def leaf(path: tuple, c: Array, base: Array) -> Array | LowRank:
            name = path_name(path)
            total = jnp.ones((), jnp.float32) if needs_base else c.sum(0)
            if name not in self.left:
                return base if needs_base else (total * base.astype(jnp.float32)).astype(base.dtype)
            return self._low_rank(name, c, base, total)

        return jax.tree_util.tree_map_with_path(leaf, coefficients, self.base)

    def whole(self) -> Stack:
        """The models with their full weights side by side."""

        def leaf(path: tuple, base: Array) -> Array:
            name = path_name(path)
            if name not in self.left:
                return jnp.broadcast_to(base[None], (self.size, *base.shape))
            update = self.left[name] @ self.right[name]
            return (base.astype(update.dtype)[None] + update).astype(base.dtype)

        return Stack(jax.tree_util.tree_map_with_path(leaf, self.base), self.base)

    def _low_rank(self, name: str, c: Array, base: Array, total: Array) -> LowRank:
        left, right = self.left[name], self.right[name]
        if c.ndim != 3 or len(c) not in (1, self.size):
            raise ValueError(f"coefficients at {name!r} have the shape {c.shape}, expected {self.size} models of a matrix")
        if (c.shape[1] > 1 and c.shape[2] > 1) or (total.size > 1):
            raise ValueError(
                f"coefficients at {name!r} have the shape {c.shape}: inside a weight of low rank they may differ along one "
                "axis only, and only for merges of task vectors; use PerTensor, or merge stack.whole()"
            )
        c = c.astype(left.dtype)
        left, right = (left * c, right) if c.shape[2] == 1 else (left, right * c)
        rows, columns = base.shape
        return LowRank(base, jnp.moveaxis(left, 0, 1).reshape(rows, -1), right.reshape(-1, columns), total.reshape(()))


def stack_adapters(adapters: Sequence[Mapping[str, Factors]], base: PyTree) -> LoraStack:
    """Adapters of one base side by side.

    Args:
        adapters: factors (left, right) of each update, its scale in one of them, by the path of its weight in the base;
            `AdaptedModel.factors` reads them from PEFT's folders. Weights that an adapter lacks it leaves as they are.
        base: a tree of arrays; adapted weights are matrices.

    Raises:
        ValueError: no adapters, a path that the base lacks (the nearest is named), factors that do not fit their weight, a NaN
            or infinity.

    Example:
        >>> from npmerge.lora import stack_adapters
        >>> first = {"w": (jnp.array([[1.0], [0.0]]), jnp.array([[0.0, 2.0]]))}
        >>> second = {"w": (jnp.array([[0.0], [1.0]]), jnp.array([[4.0, 0.0]]))}
        >>> stack = stack_adapters([first, second], base={"w": jnp.eye(2)})
        >>> merged = nm.TaskArithmetic(scale=1.0)(stack)["w"]
        >>> merged.left.shape  # of rank 1 + 1; the full weight is not made
        (2, 2)
        >>> print(merged.whole())
        [[1. 2.]
         [4. 1.]]
    """
    check_list(adapters)
    weights = flatten(base)
    names = list(dict.fromkeys(name for adapter in adapters for name in adapter))
    if not names:
        raise ValueError("nothing to merge: expected adapters with at least one weight")
    for k, adapter in enumerate(adapters):
        for name, factors in adapter.items():
            check_factors(f"adapter {k}", name, factors, weights)
    check_finite(list(adapters), "the adapters")
    check_finite(base, "the base")
    sides = [{name: _filled(adapters, name, weights[name].shape, side) for name in names} for side in (0, 1)]
    return LoraStack(base, *sides)


def check_factors(who: str, name: str, factors: Factors, weights: Mapping[str, Array]) -> None:
    """Raise ValueError for factors that do not fit the weight that they name, `who` in front."""
    if name not in weights:
        raise ValueError(f"{who}: {unknown('weight', name, weights)}")
    left, right = map(np.shape, factors)
    expected = np.shape(weights[name])
    if len(left) != 2 or len(right) != 2 or left[1] != right[0] or (left[0], right[1]) != expected:
        raise ValueError(f"{who} has factors {left} and {right} at {name!r}: their product is no matrix {expected}")


def _filled(adapters: Sequence[Mapping[str, Factors]], name: str, shape: tuple[int, ...], side: int) -> Array:
    """One side of all adapters in float32, zeros up to the largest rank."""
    most = max(adapter[name][0].shape[1] for adapter in adapters if name in adapter)
    found = np.zeros((len(adapters), shape[0], most) if side == 0 else (len(adapters), most, shape[1]), np.float32)
    for k, adapter in enumerate(adapters):
        if name in adapter:
            x = np.asarray(adapter[name][side], np.float32)
            found[k, : x.shape[0], : x.shape[1]] = x
    return jnp.asarray(found)
