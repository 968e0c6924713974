"""Products of features, summed over their samples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LEAST = 256  # units of a block: smaller products lose more than is saved


def product(x: Float[Array, "*copies samples n"], y: Float[Array, "*copies samples m"]) -> Float[Array, "*copies n m"]:
    """x^T y at the highest precision."""
    return jnp.matmul(x.mT, y, precision=jax.lax.Precision.HIGHEST)


def gram(x: Float[Array, "*copies samples units"]) -> Float[Array, "*copies units units"]:
    """x^T x at the highest precision. Of blocks that mirror each other one is computed: up to half of the work is saved."""
    units = x.shape[-1]
    if units < 2 * LEAST:
        return product(x, x)
    a, b = x[..., : units // 2], x[..., units // 2 :]
    cross = product(a, b)
    upper, lower = jnp.concatenate([gram(a), cross], -1), jnp.concatenate([cross.mT, gram(b)], -1)
    return jnp.concatenate([upper, lower], -2)
