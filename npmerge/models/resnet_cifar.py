"""The residual networks for CIFAR, 6n+2 layers in three stages (He et al. 2016, section 4.2)."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from npmerge.models.build import Config


@dataclass(frozen=True)
class ResNetCifar(Config):
    """Basic blocks with BatchNorm; each stage after the first halves the image and doubles the width.

    Attributes:
        blocks: blocks per stage; 3 is ResNet-20, 9 is ResNet-56.
        width: channels of the first stage, 16 as published; a multiplier is a larger width.
        shortcut: "A" pads with zero channels on both sides, "B" is a 1x1 convolution with BatchNorm.
        classes: number of outputs.
        side: height and width of the images.
        channels: channels of the images.

    Raises:
        ValueError: another shortcut, an odd width, no blocks.

    Example:
        >>> from npmerge.models import ResNetCifar, abstract
        >>> f"{nm.parameters(abstract(ResNetCifar()).variables):,}"  # ResNet-20: 0.27 million as published
        '269,722'
    """

    blocks: int = 3
    width: int = 16
    shortcut: Literal["A", "B"] = "A"
    classes: int = 10
    side: int = 32
    channels: int = 3

    def __post_init__(self) -> None:
        if self.shortcut not in ("A", "B"):
            raise ValueError(f"shortcut must be 'A' (zero padding) or 'B' (1x1 convolution), got {self.shortcut!r}")
        if self.width % 2 or self.blocks < 1:
            raise ValueError(f"width must be even and blocks positive, got width={self.width}, blocks={self.blocks}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(height, width, channels)."""
        return (self.side, self.side, self.channels)

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network."""
        return _ResNet(self, rngs)


def _conv(old: int, new: int, kernel: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    padding = ((kernel // 2, kernel // 2),) * 2  # on both sides, also where strides would leave one of them out
    return nnx.Conv(old, new, (kernel, kernel), strides=(stride, stride), padding=padding, use_bias=False, rngs=rngs)


class _Block(nnx.Module):
    def __init__(self, old: int, new: int, shortcut: str, rngs: nnx.Rngs):
        self.stride = 1 if old == new else 2
        self.conv1, self.norm1 = _conv(old, new, 3, self.stride, rngs), nnx.BatchNorm(new, rngs=rngs)
        self.conv2, self.norm2 = _conv(new, new, 3, 1, rngs), nnx.BatchNorm(new, rngs=rngs)
        self.padding = (new - old) // 2 if shortcut == "A" else 0
        if shortcut == "B" and old != new:
            self.conv3, self.norm3 = _conv(old, new, 1, self.stride, rngs), nnx.BatchNorm(new, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w old"]) -> Float[Array, "n h2 w2 new"]:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(self.shortcut(x) + y)

    def shortcut(self, x: Float[Array, "n h w old"]) -> Float[Array, "n h2 w2 new"]:
        if self.stride == 1:
            return x
        if not self.padding:
            return self.norm3(self.conv3(x))
        return jnp.pad(x[:, ::2, ::2, :], ((0, 0), (0, 0), (0, 0), (self.padding, self.padding)))


class _ResNet(nnx.Module):
    def __init__(self, config: ResNetCifar, rngs: nnx.Rngs):
        width = config.width
        self.conv, self.norm = _conv(config.channels, width, 3, 1, rngs), nnx.BatchNorm(width, rngs=rngs)
        blocks = []
        for stage in range(3):
            for _ in range(config.blocks):
                blocks.append(_Block(width, config.width * 2**stage, config.shortcut, rngs))
                width = config.width * 2**stage
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(width, config.classes, rngs=rngs)

    def __call__(self, x: Float[Array, "n side side channels"]) -> Float[Array, "n classes"]:
        x = nnx.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))
