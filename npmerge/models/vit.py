"""The vision transformer (Dosovitskiy et al. 2021), as torchvision and timm have it."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from npmerge.models.build import Config
from npmerge.models.layers import Attention, FeedForward, check_heads, gelu, layer_norm, normal


@dataclass(frozen=True)
class Vit(Config):
    """Patches and a class token with learned positions, pre-LayerNorm blocks, a linear head on the class token.

    Attributes:
        patch: height and width of a patch; the defaults are ViT-B/16.
        width: features of a token.
        layers: number of blocks.
        heads: attention heads in each block.
        hidden: width of the feed-forward networks.
        classes: number of outputs.
        side: height and width of the images.
        channels: channels of the images.

    Raises:
        ValueError: a width that is no multiple of the heads, a side that is none of the patch.

    Example:
        >>> from npmerge.models import Vit, abstract, example
        >>> config = Vit(layers=1)  # twelve of these layers are ViT-B/16
        >>> network = abstract(config)
        >>> f"{nm.parameters(network.variables):,}", jax.eval_shape(network.apply, network.variables, example(config)).shape
        ('8,601,064', (2, 1000))
    """

    patch: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    classes: int = 1000
    side: int = 224
    channels: int = 3

    def __post_init__(self) -> None:
        check_heads(self)
        if self.side % self.patch:
            raise ValueError(f"side must be a multiple of patch, got side={self.side}, patch={self.patch}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(height, width, channels)."""
        return (self.side, self.side, self.channels)

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network."""
        return _Vit(self, rngs)


class _Block(nnx.Module):
    def __init__(self, config: Vit, rngs: nnx.Rngs):
        self.norm1, self.norm2 = layer_norm(config.width, 1e-6, rngs), layer_norm(config.width, 1e-6, rngs)
        self.attention = Attention(config.width, config.heads, rngs)
        self.feed_forward = FeedForward(config.width, config.hidden, gelu, rngs)

    def __call__(self, x: Float[Array, "n t width"]) -> Float[Array, "n t width"]:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class _Vit(nnx.Module):
    def __init__(self, config: Vit, rngs: nnx.Rngs):
        width, patch = config.width, (config.patch, config.patch)
        self.patches = nnx.Conv(config.channels, width, patch, strides=patch, padding="VALID", kernel_init=normal, rngs=rngs)
        self.class_token = nnx.Param(normal(rngs.params(), (1, 1, width)))
        self.positions = nnx.Param(normal(rngs.params(), (1, (config.side // config.patch) ** 2 + 1, width)))
        self.blocks = nnx.List([_Block(config, rngs) for _ in range(config.layers)])
        self.norm = layer_norm(width, 1e-6, rngs)
        self.head = nnx.Linear(width, config.classes, kernel_init=normal, rngs=rngs)

    def __call__(self, x: Float[Array, "n side side channels"]) -> Float[Array, "n classes"]:
        x = self.patches(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        first = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([first, x], axis=1) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])
