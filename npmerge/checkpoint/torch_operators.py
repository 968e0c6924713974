"""Operators of PyTorch that are written anew, in the place of torchax's."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def write_operators(environment: Any) -> None:
    """Put our own operators into an environment of torchax.

    Its BatchNorm does not move running statistics, and its GroupNorm is a loop over groups, whose steps are in order.
    """
    import torch

    def batch_norm(*given: Any) -> tuple:
        mean, var, training, momentum, eps = given[3:]
        x, *own = _arrays(given[:3])
        found = batch_moments(x) if training or mean is None else (mean.jax(), var.jax())
        if training and mean is not None:
            count = x.size // x.shape[1]
            for old, new in ((mean, found[0]), (var, found[1] * (count / max(count - 1, 1)))):  # the latter unbiased
                old._elem = ((1 - momentum) * old.jax() + momentum * new).astype(old.jax().dtype)
        y = scaled((x - _beside(found[0], x)) * jax.lax.rsqrt(_beside(found[1], x) + eps), *own)
        return tuple(map(environment.j2t_iso, (y, *found)))

    def group_norm(*given: Any) -> tuple:
        x, *own = _arrays(given[:3])
        y, mean, root = grouped(x, *given[6:])
        return tuple(map(environment.j2t_iso, (scaled(y, *own), mean, root)))

    aten = torch.ops.aten
    for operator in (aten.native_batch_norm.default, aten._native_batch_norm_legit.default):
        environment.override_op_definition(operator, batch_norm)
    environment.override_op_definition(aten.native_group_norm.default, group_norm)


def batch_moments(x: Float[Array, "examples channels *places"]) -> tuple[Array, Array]:
    """Mean and biased variance of each channel."""
    axes = tuple(d for d in range(x.ndim) if d != 1)
    return jnp.mean(x, axes), jnp.var(x, axes)


def grouped(x: Float[Array, "examples channels *places"], groups: int, eps: float) -> tuple[Array, Array, Array]:
    """Channels normalised in groups of neighbours, all places together; the means and inverse roots of (examples, groups)."""
    parts = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    axes = tuple(range(2, parts.ndim))
    mean, var = jnp.mean(parts, axes, keepdims=True), jnp.var(parts, axes, keepdims=True)
    root = jax.lax.rsqrt(var + eps)
    return ((parts - mean) * root).reshape(x.shape), jnp.squeeze(mean, axes), jnp.squeeze(root, axes)


def scaled(
    x: Float[Array, "examples channels *places"],
    weight: Float[Array, " channels"] | None,
    bias: Float[Array, " channels"] | None,
) -> Array:
    """Each channel times its weight and plus its bias, if there are any."""
    x = x if weight is None else x * _beside(weight, x)
    return x if bias is None else x + _beside(bias, x)


def _arrays(tensors: Sequence[Any]) -> list[Any]:
    return [None if tensor is None else tensor.jax() for tensor in tensors]


def _beside(v: Array, x: Array) -> Array:
    """Numbers of the channels, in the shape in which they meet the channels of `x`."""
    return v.reshape(1, -1, *[1] * (x.ndim - 2))
