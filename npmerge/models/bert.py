"""BERT (Devlin et al. 2019) and the encoders of its shape, MiniLM among them."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from npmerge.models.build import Config
from npmerge.models.layers import Attention, FeedForward, check_heads, embedding, gelu, layer_norm, linear, positions


@dataclass(frozen=True)
class Bert(Config):
    """Embeddings of token, position and segment, then post-LayerNorm blocks; nothing attends to padding.

    Attributes:
        vocabulary: number of tokens; the defaults are BERT-base uncased.
        width: features of a token.
        layers: number of blocks.
        heads: attention heads in each block.
        hidden: width of the feed-forward networks.
        length: longest sequence.
        classes: outputs of a classifier on the pooled first token; None gives every token's features instead.
        types: rows of the segment embedding; every token is of segment 0.
        pad: the token that fills a sequence up.

    Raises:
        ValueError: a width that is no multiple of the heads, a pad that is no token.

    Example:
        >>> from npmerge.models import Bert, abstract, example
        >>> config = Bert(layers=1)  # twelve of these layers are BERT-base
        >>> network = abstract(config)
        >>> f"{nm.parameters(network.variables):,}", jax.eval_shape(network.apply, network.variables, example(config)).shape
        ('30,925,056', (2, 512, 768))
    """

    vocabulary: int = 30522
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    length: int = 512
    classes: int | None = None
    types: int = 2
    pad: int = 0

    input_dtype: ClassVar[str] = "int32"

    def __post_init__(self) -> None:
        check_heads(self)
        if not 0 <= self.pad < self.vocabulary:
            raise ValueError(f"pad must be a token, got pad={self.pad} with vocabulary={self.vocabulary}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(length,)."""
        return (self.length,)

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network."""
        return _Bert(self, rngs)


class _Block(nnx.Module):
    def __init__(self, config: Bert, rngs: nnx.Rngs):
        self.attention = Attention(config.width, config.heads, rngs)
        self.feed_forward = FeedForward(config.width, config.hidden, gelu, rngs)
        self.norm1, self.norm2 = layer_norm(config.width, 1e-12, rngs), layer_norm(config.width, 1e-12, rngs)

    def __call__(self, x: Float[Array, "n t width"], mask: Bool[Array, "n 1 1 t"]) -> Float[Array, "n t width"]:
        x = self.norm1(x + self.attention(x, mask=mask))
        return self.norm2(x + self.feed_forward(x))


class _Classifier(nnx.Module):
    def __init__(self, width: int, classes: int, rngs: nnx.Rngs):
        self.pooler, self.out = linear(width, width, rngs), linear(width, classes, rngs)

    def __call__(self, first: Float[Array, "n width"]) -> Float[Array, "n classes"]:
        return self.out(jnp.tanh(self.pooler(first)))


class _Bert(nnx.Module):
    def __init__(self, config: Bert, rngs: nnx.Rngs):
        width = config.width
        self.pad = config.pad
        self.tokens = embedding(config.vocabulary, width, rngs)
        self.positions = embedding(config.length, width, rngs)
        self.types = embedding(config.types, width, rngs)
        self.norm = layer_norm(width, 1e-12, rngs)
        self.blocks = nnx.List([_Block(config, rngs) for _ in range(config.layers)])
        self.head = None if config.classes is None else _Classifier(width, config.classes, rngs)

    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n t width"] | Float[Array, "n classes"]:
        x = self.tokens(tokens)
        x = x + jnp.broadcast_to(positions(self.positions, x.shape[1]) + self.types.embedding[:1], x.shape)
        x, mask = self.norm(x), (tokens != self.pad)[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask)
        return x if self.head is None else self.head(x[:, 0])
