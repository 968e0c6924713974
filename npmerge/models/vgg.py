"""VGG for small images (Simonyan and Zisserman 2015), plain or with BatchNorm."""

import itertools
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from npmerge.models.build import Config


@dataclass(frozen=True)
class Vgg(Config):
    """3x3 convolutions in stages, each followed by max-pooling, then dense layers on the flattened image.

    Attributes:
        stages: widths of the convolutions in each stage; VGG-11 is ((64,), (128,), (256, 256), (512, 512), (512, 512)).
        dense: widths of the hidden dense layers.
        classes: number of outputs.
        side: height and width of the images; halved by every stage.
        channels: channels of the images.
        norm: "batch" puts BatchNorm between every convolution, which keeps its bias, and its ReLU.
        pooled: height and width that the last stage is averaged to, as torchvision does (7) to images of any side; None
            leaves it as it is.

    Raises:
        ValueError: another norm, a side that the stages do not halve evenly, pooling to nothing.

    Example:
        >>> from npmerge.models import Vgg, abstract
        >>> variables = abstract(Vgg(norm="batch")).variables  # VGG-11 for 32 x 32 pixels
        >>> len(variables["params"]["stages"]), f"{nm.parameters(variables):,}"
        (5, '9,493,770')
    """

    stages: tuple[tuple[int, ...], ...] = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    dense: tuple[int, ...] = (512,)
    classes: int = 10
    side: int = 32
    channels: int = 3
    norm: Literal["none", "batch"] = "none"
    pooled: int | None = None

    def __post_init__(self) -> None:
        if self.norm not in ("none", "batch"):
            raise ValueError(f"norm must be 'none' or 'batch', got {self.norm!r}")
        if self.side % 2 ** len(self.stages):
            raise ValueError(f"side must be divisible by 2^stages = {2 ** len(self.stages)}, got {self.side}")
        if self.pooled is not None and self.pooled < 1:
            raise ValueError(f"pooled must be positive or None, got {self.pooled}")

    @property
    def flat_side(self) -> int:
        """Height and width of the image that is flattened."""
        return self.side // 2 ** len(self.stages) if self.pooled is None else self.pooled

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(height, width, channels)."""
        return (self.side, self.side, self.channels)

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network."""
        return _Vgg(self, rngs)


class _Convolution(nnx.Module):
    def __init__(self, old: int, new: int, norm: str, rngs: nnx.Rngs):
        self.conv = nnx.Conv(old, new, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(new, momentum=0.9, rngs=rngs) if norm == "batch" else None

    def __call__(self, x: Float[Array, "n h w old"]) -> Float[Array, "n h w new"]:
        x = self.conv(x)
        return nnx.relu(x if self.norm is None else self.norm(x))


def _averages(old: int, new: int) -> np.ndarray:
    """Matrix (new, old) of means over `new` windows that cover an axis of `old` entries, as PyTorch's adaptive pooling."""
    begin, end = np.arange(new) * old // new, -(-np.arange(1, new + 1) * old // new)
    inside = (begin[:, None] <= np.arange(old)) & (np.arange(old) < end[:, None])
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


class _Vgg(nnx.Module):
    def __init__(self, config: Vgg, rngs: nnx.Rngs):
        width, stages = config.channels, []
        for widths in config.stages:
            convolutions = []
            for new in widths:
                convolutions.append(_Convolution(width, new, config.norm, rngs))
                width = new
            stages.append(nnx.List(convolutions))
        self.stages = nnx.List(stages)
        self.pooled = config.pooled
        sizes = (width * config.flat_side**2, *config.dense, config.classes)
        self.dense = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])

    def __call__(self, x: Float[Array, "n side side channels"]) -> Float[Array, "n classes"]:
        for stage in self.stages:
            for convolution in stage:
                x = convolution(x)
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        if self.pooled not in (None, x.shape[1]):
            means = jnp.asarray(_averages(x.shape[1], self.pooled), x.dtype)
            x = jnp.einsum("nhwc,ih,jw->nijc", x, means, means)
        x = x.reshape(x.shape[0], -1)
        for layer in self.dense[:-1]:
            x = nnx.relu(layer(x))
        return self.dense[-1](x)
