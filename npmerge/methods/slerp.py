"""Spherical interpolation of two models."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.graph import PyTree, path_name
from npmerge.base import LinearMerge, Stats, is_statistic
from npmerge.stack import Stack


@dataclass(frozen=True)
class Slerp(LinearMerge):
    """(sin((1-t) omega) p_0 + sin(t omega) p_1) / sin(omega) for each tensor, omega the angle between the two (Shoemake 1985).

    The raw tensors are combined, not their directions; tensors with |cos omega| > 0.9995, or of norm zero, are interpolated
    linearly, as every implementation does.

    Attributes:
        t: the weight of the second model, 0 to 1.
    """

    t: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.t <= 1:
            raise ValueError(f"Slerp needs t in [0, 1], got {self.t}")

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """Two coefficients per tensor. Raises ValueError unless there are two models, or if a tensor pair is antipodal."""
        if stack.size != 2:
            raise ValueError(f"Slerp merges exactly two models, got {stack.size}")
        return jax.tree_util.tree_map_with_path(self._coefficients, stack.params)

    def _coefficients(self, path: tuple, x: Float[Array, "2 ..."]) -> Float[Array, "2 ..."]:
        a, b = x.reshape(2, -1).astype(jnp.float32)
        norms = jnp.linalg.norm(a) * jnp.linalg.norm(b)
        cosine = jnp.clip(jnp.dot(a, b, precision="highest") / jnp.where(norms > 0, norms, 1), -1, 1)
        if x[0].size > 1 and not is_statistic(path_name(path)) and bool(cosine < -1 + 1e-6):
            raise ValueError(f"Slerp is undefined for opposite tensors, as those at {path_name(path)!r} are")
        linear = (jnp.abs(cosine) > 0.9995) | (norms == 0)
        omega = jnp.arccos(jnp.where(linear, 0.0, cosine))
        t = jnp.array([1 - self.t, self.t], jnp.float32)
        c = jnp.where(linear, t, jnp.sin(t * omega) / jnp.sin(omega))
        return c.reshape((2,) + (1,) * (x.ndim - 1))
