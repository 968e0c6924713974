"""Points of the simplex between models, by a gradient that keeps nothing: what NP Merge evaluates in every step.

By the softmax itself a step holds its coefficients, and more of their size for the gradient. Written out over the models every
coefficient is made where it is used: the models and latents are read once for the merge and once for the gradient. What a step
takes beside fine-tuning is printed by `python -m experiments.benchmarks.learning`.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from npmerge.arithmetic import wide


@jax.custom_vjp
def on_simplex(latent: Float[Array, "rows ..."], models: Float[Array, "models ..."]) -> Float[Array, "..."]:
    """The sum over the models of each times its coefficient, in float32.

    For one row a of latents and two models sigmoid(a) W_1 + (1 - sigmoid(a)) W_2, else the softmax over the rows.
    Differentiable in reverse, as often as one likes.

    Args:
        latent: it broadcasts against the models from the second axis on.
        models: of any floating-point dtype.
    """
    return _forward(latent, models)[0]


def _forward(latent: Array, models: Array) -> tuple[Array, tuple]:
    rows = wide(latent)
    if len(rows) == 1:
        share = jax.nn.sigmoid(rows[0]).astype(wide(models[0]).dtype)
        merged = share * wide(models[0]) + (1 - share) * wide(models[1])
        return merged, (latent, models, None, merged)
    scale = _log_sum(rows)
    terms = [jnp.exp(rows[k] - scale).astype(wide(w).dtype) * wide(w) for k, w in enumerate(models)]
    merged = functools.reduce(jnp.add, terms)
    return merged, (latent, models, scale, merged)


def _log_sum(rows: Array) -> Array:
    """Of exponentials over the rows, written out: XLA makes one loop of it."""
    top = functools.reduce(jnp.maximum, list(rows))
    return top + jnp.log(functools.reduce(jnp.add, [jnp.exp(x - top) for x in rows]))


def _backward(saved: tuple, gradient: Array) -> tuple[Array, Array]:
    """dL/da_k = c_k (W_k - W) dL/dW for the softmax, c (1 - c) (W_1 - W_2) dL/dW for the sigmoid; dL/dW_k = c_k dL/dW."""
    latent, models, scale, merged = saved
    rows = wide(latent)
    shared = [k for k in range(1, latent.ndim) if latent.shape[k] < models.shape[k]]
    if scale is None:
        small = jnp.exp(-jnp.abs(rows))  # not the forward's expression, or XLA would keep that one's values until here
        slope = small / jnp.square(1 + small)
        coefficients = jnp.concatenate([jax.nn.sigmoid(rows), jax.nn.sigmoid(-rows)])
    else:
        slope = coefficients = jnp.exp(rows - scale[None])
    if scale is None and not shared:
        along = (wide(models[:1]) - wide(models[1:])) * gradient[None]
    else:
        along = ((wide(models) - merged[None]) * gradient[None]).sum(shared, keepdims=True)
        along = along if scale is not None else along[:1] - along[1:]
    of_models = coefficients.astype(gradient.dtype) * gradient[None]
    return (slope.astype(along.dtype) * along).astype(latent.dtype), of_models.astype(models.dtype)


on_simplex.defvjp(_forward, _backward)
