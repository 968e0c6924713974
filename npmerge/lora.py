"""Adapters of low rank: made, trained, merged into their base, extracted from two networks, and side by side for merges."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.checks import check_count, check_key, check_kinds, check_pattern
from alignment.graph import PyTree, flatten, path_name
from npmerge.checkpoint.factors import extracted
from npmerge.lora_stack import Factors, LoraStack, check_factors, stack_adapters
from npmerge.low_rank import LowRank, materialised, with_low_rank
from npmerge.objectives.base import Apply, Check, Objective, Term
from npmerge.objectives.losses import OfObjective
from npmerge.stack import check_models

__all__ = [
    "Adapter",
    "AdapterLoss",
    "Extracted",
    "LoraStack",
    "adapted",
    "adapter_tuning",
    "extract_adapter",
    "init_adapter",
    "merge_adapter",
    "stack_adapters",
]

Adapter = Mapping[str, Factors]
"""Factors (left, right) of an update by the path of its weight: `base + left @ right`."""


def init_adapter(base: PyTree, weights: str, rank: int, *, key: Array) -> dict[str, Factors]:
    """An adapter that changes nothing yet (Hu et al. 2022, "LoRA", section 4.1): left normal, right zero.

    For weights that inputs are multiplied by from the left, x @ W, `left` is the paper's A and `right` its B. The factor
    alpha / r of the paper is a part of the learning rate here.

    Args:
        base: the network that is adapted.
        weights: a regular expression that is searched in the paths of its matrices.
        rank: r, of every update.
        key: of the left factors, whose elements have the variance 1 / rows.

    Raises:
        ValueError: an expression that finds no matrix, a rank below 1.

    Example:
        >>> from npmerge.lora import init_adapter
        >>> adapter = init_adapter({"w": jnp.ones((4, 3)), "b": jnp.ones(3)}, "w|b", 2, key=jax.random.key(0))
        >>> {path: (left.shape, right.shape) for path, (left, right) in adapter.items()}  # matrices only
        {'w': ((4, 2), (2, 3))}
    """
    check_pattern("weights", weights)
    check_count("rank", rank)
    check_key(key)
    chosen = {path: np.shape(x) for path, x in flatten(base).items() if np.ndim(x) == 2 and re.search(weights, path)}
    if not chosen:
        raise ValueError(f"no matrix of the base has a path in which {weights!r} is found")
    keys = jax.random.split(key, len(chosen))
    return {
        path: (jax.random.normal(k, (rows, rank), jnp.float32) / np.float32(rows**0.5), jnp.zeros((rank, columns), jnp.float32))
        for k, (path, (rows, columns)) in zip(keys, chosen.items(), strict=True)
    }


def adapted(base: PyTree, adapter: Adapter) -> PyTree:
    """The base with a `LowRank` in place of each weight that an adapter changes: `with_low_rank(apply)` takes it.

    Raises:
        ValueError: a path that the base lacks (the nearest is named), factors that do not fit their weight.

    Example:
        >>> from npmerge.lora import adapted
        >>> from npmerge.low_rank import with_low_rank
        >>> base, adapter = {"w": jnp.eye(2)}, {"w": (jnp.array([[1.0], [0.0]]), jnp.array([[0.0, 2.0]]))}
        >>> print(with_low_rank(lambda v, x: x @ v["w"])(adapted(base, adapter), jnp.array([[1.0, 1.0]])))
        [[1. 3.]]
    """
    leaves = flatten(base)
    for name, factors in adapter.items():
        check_factors("the adapter", name, factors, leaves)

    def leaf(path: tuple, x: Array) -> Array | LowRank:
        factors = adapter.get(path_name(path))
        return x if factors is None else LowRank(x, *factors, jnp.ones((), jnp.float32))

    return jax.tree_util.tree_map_with_path(leaf, base)


def merge_adapter(base: PyTree, adapter: Adapter) -> PyTree:
    """The base with the adapter in its weights, computed in float32 and rounded once. Raises ValueError as `adapted` does.

    Example:
        >>> from npmerge.lora import merge_adapter
        >>> print(merge_adapter({"w": jnp.eye(2)}, {"w": (jnp.array([[1.0], [0.0]]), jnp.array([[0.0, 2.0]]))})["w"])
        [[1. 2.]
         [0. 1.]]
    """
    return materialised(adapted(base, adapter))


class Extracted(NamedTuple):
    """What `extract_adapter` returns.

    Attributes:
        adapter: the factors of each weight that differs.
        error: of each, the part of its update's Frobenius norm that the rank leaves out.

    Example:
        >>> from npmerge.lora import extract_adapter
        >>> extract_adapter({"w": jnp.diag(jnp.array([4.0, 3.0]))}, {"w": jnp.zeros((2, 2))}, 1).error
        {'w': 0.6}
    """

    adapter: dict[str, Factors]
    error: dict[str, float]


def extract_adapter(model: PyTree, base: PyTree, rank: int) -> Extracted:
    """The difference of two networks as an adapter: the nearest one of a rank, in each weight (Eckart & Young 1936).

    Raises:
        ValueError: networks of other structures, a rank below 1, a leaf that differs and is no matrix (its path).

    Example:
        >>> from npmerge.lora import extract_adapter
        >>> base = {"w": jnp.ones((2, 2))}
        >>> found = extract_adapter({"w": jnp.diag(jnp.array([4.0, 3.0])) + base["w"]}, base, rank=1)
        >>> print(abs(found.adapter["w"][0] @ found.adapter["w"][1]), found.error)
        [[4. 0.]
         [0. 0.]] {'w': 0.6}
    """
    check_models([base, model])
    check_count("rank", rank)
    adapter, error = {}, {}
    ours = flatten(base)
    for path, x in flatten(model).items():
        difference = np.asarray(x, np.float32) - np.asarray(ours[path], np.float32)
        if not difference.any():
            continue
        if difference.ndim != 2:
            raise ValueError(f"the networks differ at {path!r}, which is no matrix: an adapter of low rank cannot hold that")
        right, left, error[path] = extracted(difference, rank)
        adapter[path] = (jnp.asarray(left), jnp.asarray(right))
    return Extracted(adapter, error)


@dataclass(frozen=True)
class AdapterLoss(OfObjective):
    """`loss(adapter, base, batch)`: theta is an adapter, the base takes the place of the stack. `adapter_tuning` makes it.

    Attributes:
        apply: the network.
        objective: what is minimised.

    Example:
        >>> from npmerge.lora import adapter_tuning
        >>> loss = adapter_tuning(lambda v, x: x @ v["w"], nm.CrossEntropy())
        >>> adapter = {"w": (jnp.ones((2, 1)), jnp.zeros((1, 2)))}
        >>> print(loss(adapter, {"w": jnp.zeros((2, 2))}, (jnp.eye(2), np.array([0, 1]))).round(2))
        0.69
    """

    apply: Apply
    objective: Objective

    def __call__(self, theta: Adapter, stack: PyTree, batch: Any) -> Float[Array, ""]:
        """The objective of the adapted base."""
        return self.objective(with_low_rank(self.apply), adapted(stack, theta), None, batch)

    def terms(self, theta: Adapter, stack: PyTree, batch: Any) -> list[Term]:
        """The parts of it that are averaged alone over several batches (`Objective.terms`)."""
        return self.objective.terms(with_low_rank(self.apply), adapted(stack, theta), None, batch)

    def checker(self, theta: Adapter, stack: PyTree, batch: Any) -> Check:
        """A check for batches like this one: it raises ValueError for those that cannot be learned from."""
        return self.objective.checker(self.apply, stack, None, batch)

    def check_theta(self, theta: Adapter, stack: PyTree) -> None:
        """Raise ValueError for an adapter that does not fit the base."""
        jax.eval_shape(adapted, stack, theta)


def adapter_tuning(apply: Apply, objective: Objective) -> AdapterLoss:
    """The loss of an adapter, for `fit(adapter, loss, base, batches, ...)` and for `fit_many(..., stack=base)`.

    No full weights are made on the way, and the base is not learned.

    Raises:
        ValueError: arguments of other kinds.

    Example:
        >>> from npmerge.lora import adapter_tuning, init_adapter
        >>> base, batches = {"w": jnp.zeros((2, 2))}, [(jnp.eye(2), np.array([0, 1]))]
        >>> loss = adapter_tuning(lambda v, x: x @ v["w"], nm.CrossEntropy())
        >>> start = init_adapter(base, "w", 2, key=jax.random.key(0))
        >>> found = nm.fit(start, loss, base, batches, optax.sgd(1.0), steps=20)
        >>> found.history.loss[-1] < found.history.loss[0]
        np.True_
    """
    check_kinds("adapter_tuning takes (apply, objective)", (apply, Callable), (objective, Objective))
    return AdapterLoss(apply, objective)
