"""How a network is computed while it is learned: in a narrower dtype, with less kept for the gradient."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from alignment.checks import check_kinds, unknown
from alignment.graph import PyTree
from npmerge.objectives.losses import frozen_in

NARROW = ("bfloat16", "float16", "float32")
KEPT = ("dot_general", "conv_general_dilated")
"""Primitives whose results are kept for the gradient: what else there is takes little time to compute again."""

Network = Callable[..., PyTree]


class _Around:
    """A network around another one, whose leaves are frozen where they are in that."""

    apply: Network

    def frozen(self, path: str) -> bool:
        """Whether a leaf of the variables is not learned."""
        return frozen_in(self.apply, path)


@dataclass(frozen=True)
class MixedPrecision(_Around):
    """A network computed in another dtype than its variables have; `mixed_precision` makes it."""

    apply: Network
    dtype: str

    def __call__(self, variables: PyTree, *inputs: Any) -> PyTree:
        """The outputs, in that dtype."""
        return self.apply(_cast(variables, self.dtype), *_cast(inputs, self.dtype))


@dataclass(frozen=True)
class Remat(_Around):
    """A network of which only results of contractions are kept for the gradient; `remat` makes it."""

    apply: Network

    def __call__(self, variables: PyTree, *inputs: Any) -> PyTree:
        """The outputs."""
        return jax.checkpoint(self.apply, policy=_is_contraction)(variables, *inputs)


def mixed_precision(apply: Network, dtype: str = "bfloat16") -> MixedPrecision:
    """The network with floating-point variables and inputs rounded to a dtype before it is computed.

    Theta, the models and the optimiser's state stay in float32, and so do objectives: only the network is narrow (Micikevicius
    et al. 2018). In float16 gradients may vanish, bfloat16 has the range of float32.

    Args:
        apply: `apply(variables, *inputs)`.
        dtype: "bfloat16", "float16" or "float32".

    Raises:
        ValueError: another dtype, or no function.

    Example:
        >>> narrow = nm.mixed_precision(lambda v, x: x @ v["w"])
        >>> print(narrow({"w": jnp.array([[1.001]])}, jnp.ones((1, 1))))  # bfloat16 has three digits
        [[1]]
    """
    check_kinds("mixed_precision takes a network", (apply, Callable))
    if dtype not in NARROW:
        raise ValueError(unknown("dtype", dtype, NARROW))
    return MixedPrecision(apply, dtype)


def remat(apply: Network) -> Remat:
    """The network with elementwise results computed anew for the gradient, for memory (Chen et al. 2016).

    What matrix products and convolutions make is kept, so that the time is little more. Layers of which nothing at all is to
    be kept are for the network itself to wrap in `jax.checkpoint`.

    Raises:
        ValueError: no function.

    Example:
        >>> apply, v, x = lambda v, x: jnp.sin(jnp.sin(x @ v)), jnp.eye(2), jnp.ones((8, 2))
        >>> kept = [len(jax.tree.leaves(jax.vjp(f, v, x)[1])) for f in (apply, nm.remat(apply))]  # arrays, for the gradient
        >>> kept[1] < kept[0]
        True
    """
    check_kinds("remat takes a network", (apply, Callable))
    return Remat(apply)


def _cast(tree: PyTree, dtype: str) -> PyTree:
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, tree)


def _is_contraction(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in KEPT
