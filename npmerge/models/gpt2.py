"""GPT-2 (Radford et al. 2019)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from npmerge.models.build import Config
from npmerge.models.layers import FeedForward, attend, check_heads, embedding, layer_norm, linear, positions, split_heads


@dataclass(frozen=True)
class Gpt2(Config):
    """Embeddings of token and position, causal pre-LayerNorm blocks, a head tied to the token embedding.

    Attributes:
        vocabulary: number of tokens; the defaults are the 124 million parameters.
        width: features of a token.
        layers: number of blocks.
        heads: attention heads in each block.
        hidden: width of the feed-forward networks.
        length: longest sequence.

    Raises:
        ValueError: a width that is no multiple of the heads.

    Example:
        >>> from npmerge.models import Gpt2, abstract, example
        >>> config = Gpt2(layers=1)  # twelve of these layers are the 124 million parameters
        >>> network = abstract(config)
        >>> f"{nm.parameters(network.variables):,}", jax.eval_shape(network.apply, network.variables, example(config)).shape
        ('46,473,216', (2, 1024, 50257))
    """

    vocabulary: int = 50257
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    length: int = 1024

    input_dtype: ClassVar[str] = "int32"

    def __post_init__(self) -> None:
        check_heads(self)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(length,)."""
        return (self.length,)

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network."""
        return _Gpt2(self, rngs)


class _Attention(nnx.Module):
    """Queries, keys and values come from one fused projection."""

    def __init__(self, config: Gpt2, init: nnx.Initializer, rngs: nnx.Rngs):
        self.size = config.width // config.heads
        self.qkv = linear(config.width, 3 * config.width, rngs)
        self.out = linear(config.width, config.width, rngs, init=init)

    def __call__(self, x: Float[Array, "n t width"]) -> Float[Array, "n t width"]:
        query, key, value = (split_heads(y, self.size) for y in jnp.split(self.qkv(x), 3, axis=-1))
        return self.out(attend(query, key, value, is_causal=True))


class _Block(nnx.Module):
    def __init__(self, config: Gpt2, rngs: nnx.Rngs):
        residual = nnx.initializers.normal(0.02 / (2 * config.layers) ** 0.5)  # each block adds to the stream twice
        self.norm1, self.norm2 = layer_norm(config.width, 1e-5, rngs), layer_norm(config.width, 1e-5, rngs)
        self.attention = _Attention(config, residual, rngs)
        self.feed_forward = FeedForward(config.width, config.hidden, jax.nn.gelu, rngs, init=residual)

    def __call__(self, x: Float[Array, "n t width"]) -> Float[Array, "n t width"]:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class _Gpt2(nnx.Module):
    def __init__(self, config: Gpt2, rngs: nnx.Rngs):
        self.tokens = embedding(config.vocabulary, config.width, rngs)
        self.positions = embedding(config.length, config.width, rngs)
        self.blocks = nnx.List([_Block(config, rngs) for _ in range(config.layers)])
        self.norm = layer_norm(config.width, 1e-5, rngs)

    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n t vocabulary"]:
        x = self.tokens(tokens)
        x = x + jnp.broadcast_to(positions(self.positions, x.shape[1]), x.shape)
        for block in self.blocks:
            x = block(x)
        return self.tokens.attend(self.norm(x))
