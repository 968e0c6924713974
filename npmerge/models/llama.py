"""Llama (Touvron et al. 2023) and its relatives Mistral and Qwen2, one option each."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from npmerge.models.build import Config
from npmerge.models.layers import attend, check_heads, embedding, linear, split_heads


@dataclass(frozen=True)
class Llama(Config):
    """Causal pre-RMSNorm blocks with rotary positions, grouped queries and SwiGLU.

    Attributes:
        vocabulary: number of tokens; the defaults are SmolLM2, 135 million parameters.
        width: features of a token.
        layers: number of blocks.
        heads: query heads in each block.
        kv_heads: key and value heads in each block, each shared by heads / kv_heads query heads.
        hidden: width of the gated feed-forward networks.
        length: length of an example; any other can be given.
        theta: base of the rotary angles.
        eps: epsilon of RMSNorm.
        bias: biases on queries, keys and values, as in Qwen2.
        tied: the head is the token embedding.
        window: how many tokens, itself included, a token sees in each block, as in Mistral; None is all before it.
        stretch: (factor, low, high, old length) of rotary positions, as from Llama 3.1 on: turns of which fewer than `low` fit
            into the old length are slowed down by the factor, those of which more than `high` do are not, with a linear
            transition; None slows down none.

    Raises:
        ValueError: a width that is no even multiple of the heads, heads that are none of kv_heads, another window or stretch.

    Example:
        >>> from npmerge.models import Llama, abstract, example
        >>> config = Llama(layers=1, length=16)  # thirty of these layers are SmolLM2, 135 million parameters
        >>> network = abstract(config)
        >>> f"{nm.parameters(network.variables):,}", jax.eval_shape(network.apply, network.variables, example(config)).shape
        ('31,852,224', (2, 16, 49152))
    """

    vocabulary: int = 49152
    width: int = 576
    layers: int = 30
    heads: int = 9
    kv_heads: int = 3
    hidden: int = 1536
    length: int = 8192
    theta: float = 100_000.0
    eps: float = 1e-5
    bias: bool = False
    tied: bool = True
    window: int | None = None
    stretch: tuple[float, float, float, int] | None = None

    input_dtype: ClassVar[str] = "int32"

    def __post_init__(self) -> None:
        check_heads(self)
        check_heads(self, features="heads", heads="kv_heads")
        if self.width // self.heads % 2:
            raise ValueError(f"rotary positions turn pairs: width / heads must be even, got {self.width} / {self.heads}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be positive or None, got {self.window}")
        if self.stretch is not None and not (self.stretch[0] > 0 and self.stretch[2] > self.stretch[1] >= 0 < self.stretch[3]):
            raise ValueError(f"stretch must be (factor > 0, low, high > low, old length > 0) or None, got {self.stretch}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(length,)."""
        return (self.length,)

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network."""
        return _Llama(self, rngs)


def _frequencies(config: Llama) -> Float[np.ndarray, " half"]:
    """theta^(-2k/size), stretched; in float32, rounded as the checkpoints have been trained."""
    half = config.width // config.heads // 2
    frequencies = np.float32(1) / np.float32(config.theta) ** (np.arange(half, dtype=np.float32) / np.float32(half))
    if config.stretch is None:
        return frequencies
    factor, low, high, length = config.stretch
    kept = np.clip((length * frequencies / np.float32(2 * np.pi) - low) / (high - low), 0, 1)
    return ((1 - kept) * frequencies / factor + kept * frequencies).astype(np.float32)


def _rotate(x: Float[Array, "n t heads size"], frequencies: Float[np.ndarray, " half"]) -> Float[Array, "n t heads size"]:
    """Turn the features k and k + size/2 of the token at position t by the angle t times the k-th frequency."""
    half = x.shape[3] // 2
    angles = np.arange(x.shape[1], dtype=np.float32)[None, :, None, None] * frequencies
    cos, sin = jnp.asarray(np.cos(angles), x.dtype), jnp.asarray(np.sin(angles), x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class _Attention(nnx.Module):
    def __init__(self, config: Llama, rngs: nnx.Rngs):
        self.size, self.frequencies = config.width // config.heads, tuple(_frequencies(config).tolist())
        self.window = None if config.window is None else (config.window - 1, 0)
        groups = config.kv_heads * self.size
        self.query = linear(config.width, config.width, rngs, bias=config.bias)
        self.key = linear(config.width, groups, rngs, bias=config.bias)
        self.value = linear(config.width, groups, rngs, bias=config.bias)
        self.out = linear(config.width, config.width, rngs, bias=False)

    def __call__(self, x: Float[Array, "n t width"]) -> Float[Array, "n t width"]:
        query, key, value = (split_heads(f(x), self.size) for f in (self.query, self.key, self.value))
        frequencies = np.array(self.frequencies, np.float32)
        query, key = _rotate(query, frequencies), _rotate(key, frequencies)
        return self.out(attend(query, key, value, is_causal=True, local_window_size=self.window))


class _FeedForward(nnx.Module):
    def __init__(self, config: Llama, rngs: nnx.Rngs):
        self.gate, self.up = (linear(config.width, config.hidden, rngs, bias=False) for _ in range(2))
        self.down = linear(config.hidden, config.width, rngs, bias=False)

    def __call__(self, x: Float[Array, "n t width"]) -> Float[Array, "n t width"]:
        return self.down(nnx.silu(self.gate(x)) * self.up(x))


class _Block(nnx.Module):
    def __init__(self, config: Llama, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (nnx.RMSNorm(config.width, epsilon=config.eps, rngs=rngs) for _ in range(2))
        self.attention = _Attention(config, rngs)
        self.feed_forward = _FeedForward(config, rngs)

    def __call__(self, x: Float[Array, "n t width"]) -> Float[Array, "n t width"]:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class _Llama(nnx.Module):
    def __init__(self, config: Llama, rngs: nnx.Rngs):
        self.tokens = embedding(config.vocabulary, config.width, rngs)
        self.blocks = nnx.List([_Block(config, rngs) for _ in range(config.layers)])
        self.norm = nnx.RMSNorm(config.width, epsilon=config.eps, rngs=rngs)
        self.head = None if config.tied else linear(config.width, config.vocabulary, rngs, bias=False)

    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n t vocabulary"]:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.tokens.attend(x) if self.head is None else self.head(x)
