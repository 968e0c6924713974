"""What these tests share: a plain-JAX network of two layers, its variables, and small helpers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SIZES = (4, 6, 3)
"""Inputs, hidden units and classes of the network."""


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def array(seed: int, *shape: int, dtype: Any = np.float32) -> jax.Array:
    return jnp.asarray(normal(seed, *shape).astype(dtype), dtype)  # nothing is compiled where the dtype is said


def dense(layer: Any, x: jax.Array) -> jax.Array:
    y = jnp.tensordot(x, layer["kernel"], 1)
    return y + jnp.broadcast_to(layer["bias"], y.shape)


def apply(variables: Any, x: jax.Array) -> jax.Array:
    return dense(variables["out"], jax.nn.relu(dense(variables["first"], x)))


def variables(seed: int) -> dict[str, Any]:
    n, h, c = SIZES
    draws = [normal(100 * seed + k, *shape) for k, shape in enumerate([(n, h), (h,), (h, c), (c,)])]
    kernel, bias, out, last = (jnp.asarray(x.astype(np.float32), np.float32) for x in draws)
    return {"first": {"kernel": kernel, "bias": 0.3 * jnp.abs(bias)}, "out": {"kernel": out, "bias": last}}


def permuted(model: dict[str, Any], index: np.ndarray) -> dict[str, Any]:
    """The same function with its hidden units in another order."""
    first, out = model["first"], model["out"]
    return {
        "first": {"kernel": first["kernel"][:, index], "bias": first["bias"][index]},
        "out": {"kernel": out["kernel"][index], "bias": out["bias"]},
    }


def batch(seed: int, n: int = 8) -> tuple[jax.Array, jax.Array]:
    labels = np.random.default_rng(seed).integers(0, SIZES[-1], n)
    return array(seed, n, SIZES[0]), jnp.asarray(labels.astype(np.int32), np.int32)


def float64(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def logits64(model: Any, x: np.ndarray) -> np.ndarray:
    """The network in float64 numpy."""
    m = float64(model)
    hidden = np.maximum(np.asarray(x, np.float64) @ m["first"]["kernel"] + m["first"]["bias"], 0)
    return hidden @ m["out"]["kernel"] + m["out"]["bias"]


def log_softmax64(z: np.ndarray) -> np.ndarray:
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))
