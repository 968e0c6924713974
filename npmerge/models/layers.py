"""What the transformers share: projections, attention over heads, the feed-forward network, learned positions."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from npmerge.models.build import Config

normal = nnx.initializers.normal(0.02)


def linear(old: int, new: int, rngs: nnx.Rngs, *, bias: bool = True, init: Callable = normal) -> nnx.Linear:
    """A dense layer as transformers initialise it."""
    return nnx.Linear(old, new, use_bias=bias, kernel_init=init, rngs=rngs)


def embedding(rows: int, width: int, rngs: nnx.Rngs) -> nnx.Embed:
    """A table of vectors as transformers initialise it."""
    return nnx.Embed(rows, width, embedding_init=normal, rngs=rngs)


def layer_norm(width: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with the variance about the mean: trained residual streams have means that E[x^2] - E[x]^2 would drown in."""
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


def positions(table: nnx.Embed, length: int) -> Float[Array, "length width"]:
    """The first rows of a table of learned positions.

    Raises:
        ValueError: the table is shorter.
    """
    if length > table.num_embeddings:
        raise ValueError(f"got {length} tokens, but there are learned positions for {table.num_embeddings}")
    return table.embedding[:length]


def split_heads(x: Float[Array, "n t features"], size: int) -> Float[Array, "n t heads size"]:
    """One axis into heads of `size` features."""
    return x.reshape(*x.shape[:2], -1, size)


def attend(
    query: Float[Array, "n t heads size"],
    key: Float[Array, "n t groups size"],
    value: Float[Array, "n t groups size"],
    **masks: Any,
) -> Float[Array, "n t features"]:
    """Scaled dot-product attention, heads joined again; `masks` as `jax.nn.dot_product_attention` has them."""
    x = jax.nn.dot_product_attention(query, key, value, **masks)
    return x.reshape(*x.shape[:2], -1)


def check_heads(config: Config, *, features: str = "width", heads: str = "heads") -> None:
    """Refuse a configuration whose field `features` is no positive multiple of its field `heads`."""
    a, b = getattr(config, features), getattr(config, heads)
    if min(a, b) < 1 or a % b:
        raise ValueError(f"{features} must be a multiple of {heads}, got {features}={a}, {heads}={b}")


def gelu(x: Array) -> Array:
    """GELU with the error function, not its approximation by a tanh."""
    return jax.nn.gelu(x, approximate=False)


class Attention(nnx.Module):
    """Self-attention with a projection each for queries, keys, values and output, all with biases."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.size = width // heads
        self.query, self.key, self.value, self.out = (linear(width, width, rngs) for _ in range(4))

    def __call__(self, x: Float[Array, "n t width"], **masks: Any) -> Float[Array, "n t width"]:
        """Every token attends to those that `masks` leave it."""
        query, key, value = (split_heads(f(x), self.size) for f in (self.query, self.key, self.value))
        return self.out(attend(query, key, value, **masks))


class FeedForward(nnx.Module):
    """Two dense layers with a nonlinearity between them."""

    def __init__(self, width: int, hidden: int, activation: Callable, rngs: nnx.Rngs, *, init: Callable = normal):
        self.up, self.down = linear(width, hidden, rngs), linear(hidden, width, rngs, init=init)
        self.activation = activation

    def __call__(self, x: Float[Array, "n t width"]) -> Float[Array, "n t width"]:
        """Each token for itself."""
        return self.down(self.activation(self.up(x)))
