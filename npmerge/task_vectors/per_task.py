"""Merges that keep one network per task: a vector that all tasks share, and for each of them a mask and a number."""

import abc
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from alignment.graph import PyTree, flatten, path_name
from npmerge.arithmetic import over_models, wide
from npmerge.memory import bytes_of
from npmerge.stack import Stack, check_stack
from npmerge.task_vectors.bits import packed, unpacked
from npmerge.task_vectors.composed import Composed, task_vectors
from npmerge.task_vectors.transforms import Masks, Model, Tensors


class TaskNetworks(NamedTuple):
    """What N networks are stored as, instead of N networks: base + scale_k * mask_k * vector.

    Attributes:
        base: the network that the tasks were fine-tuned from.
        vector: the task vector that all tasks share, by path.
        masks: for each task which entries of it are its own, by path, eight entries in a byte.
        scales: for each task what its entries are multiplied by.
        statistics: running statistics by path, which are those of each task's own model.

    Example:
        >>> stack = nm.stack_models([{"w": s * jnp.arange(64.0)} for s in (1, -2, 3)], base={"w": jnp.zeros(64)})
        >>> networks = nm.TallMasks().networks(nm.TallMasks().init(stack), stack)
        >>> networks.nbytes  # beside 3 x 256 of three whole networks
        {'base': 256, 'vector': 256, 'masks': 24, 'scales': 12, 'statistics': 0}
        >>> print(networks.network(0)["w"][:4])
        [0. 2. 4. 6.]
    """

    base: PyTree
    vector: Model
    masks: dict[str, UInt8[Array, "models bytes"]]
    scales: Float[Array, " models"]
    statistics: dict[str, Float[Array, "models ..."]]

    def network(self, k: int | Int[Array, ""]) -> PyTree:
        """The network of task k, which may be traced; rounded once to the stored dtype.

        Raises:
            ValueError: unless there is such a task.
        """
        if not _is_index(k, len(self.scales)):
            raise ValueError(f"there are the tasks 0 to {len(self.scales) - 1}, got {k!r}")

        def leaf(path: tuple, base: Array) -> Array:
            name = path_name(path)
            if name in self.statistics:
                return self.statistics[name][k]
            origin = wide(base)
            mask = unpacked(self.masks[name][k][None], base.shape)[0]
            delta = jnp.where(mask, self.scales[k] * self.vector[name], 0)
            return (origin + delta.astype(origin.dtype)).astype(base.dtype)

        return jax.tree_util.tree_map_with_path(leaf, self.base)

    @property
    def nbytes(self) -> dict[str, int]:
        """The bytes of each part; N whole networks would take N times those of the base."""
        return {name: bytes_of(part) for name, part in self._asdict().items()}


class PerTask(Composed):
    """A merge whose `apply` gives one network for all tasks, and whose `task` gives one for each.

    The network of task k is base + scale_k * mask_k * (merged - base). All are pure functions, differentiable in theta and the
    stack.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Changed(nm.PerTask):  # each task has of the sum what it changed itself
        ...     scale: float = 1.0
        ...     transforms = ()
        ...     def masks(self, vectors):
        ...         return {path: x != 0 for path, x in vectors.items()}
        >>> models = [{"w": jnp.array([2.0, 0.0, 1.0])}, {"w": jnp.array([0.0, 3.0, 1.0])}]
        >>> stack, merge = nm.stack_models(models, base={"w": jnp.zeros(3)}), Changed()
        >>> print(*(merge.task(merge.init(stack), stack, k)["w"] for k in (0, 1)))
        [2. 0. 2.] [0. 3. 2.]
    """

    @abc.abstractmethod
    def masks(self, vectors: Tensors) -> Masks:
        """The entries of the merged vector that each task needs."""

    def rescale(self, vectors: Tensors, kept: Tensors) -> Float[Array, " models"]:
        """A number for each task; `kept` is the merged vector where its mask is true. Ones by default."""
        return jnp.ones(len(next(iter(vectors.values()))), jnp.float32)

    def networks(self, theta: PyTree, stack: Stack) -> TaskNetworks:
        """The networks of all tasks in their compact form. Raises ValueError without a base."""
        check_stack(stack)
        self.require_base(stack)
        vectors, coefficients = task_vectors(stack), flatten(theta)
        merged = {path: over_models(coefficients[path] * x) for path, x in vectors.items()}
        masks = self.masks(vectors)
        scales = self.rescale(vectors, {path: jnp.where(masks[path], x, 0.0) for path, x in merged.items()})
        bits = {path: packed(m) for path, m in masks.items()}
        statistics = {path: x for path, x in flatten(stack.params).items() if path not in vectors}
        return TaskNetworks(stack.base, {path: x[0] for path, x in merged.items()}, bits, scales, statistics)

    def task(self, theta: PyTree, stack: Stack, k: int | Int[Array, ""]) -> PyTree:
        """The network of task k. Raises ValueError unless there is such a model."""
        return self.networks(theta, stack).network(k)


def _is_index(k: Any, size: int) -> bool:
    """Whether k is an integer from 0 to size - 1, or traced: JAX would clip others, to the network of another task."""
    if isinstance(k, jax.Array):
        whole = k.ndim == 0 and jnp.issubdtype(k.dtype, jnp.integer)
        return whole and (isinstance(k, jax.core.Tracer) or 0 <= int(k) < size)
    return isinstance(k, numbers.Integral) and not isinstance(k, bool) and 0 <= int(k) < size
