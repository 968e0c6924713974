"""The residual networks for ImageNet (He et al. 2016), as torchvision trains them: version 1.5, BatchNorm everywhere."""

from dataclasses import dataclass
from typing import Literal

import jax
from flax import nnx
from jaxtyping import Array, Float

from npmerge.models.build import Config


@dataclass(frozen=True)
class ResNet(Config):
    """A 7x7 stem and max-pooling, then stages of residual blocks; each after the first halves the image.

    Running statistics move by a tenth a step as in PyTorch, but towards the batch's biased variance, as in all of Flax.

    Attributes:
        block: "basic" is two 3x3 convolutions; "bottleneck" is 1x1, 3x3 (which strides), 1x1, four times as wide at its end.
        stages: blocks per stage; (2, 2, 2, 2) of basic is ResNet-18, (3, 4, 6, 3) of bottleneck is ResNet-50.
        width: channels of the first stage's 3x3 convolutions, doubled by every stage.
        classes: number of outputs.
        side: height and width of the images.
        channels: channels of the images.

    Raises:
        ValueError: another block, a width or stage that is not positive.

    Example:
        >>> from npmerge.models import ResNet, abstract
        >>> f"{nm.parameters(abstract(ResNet()).variables):,}"  # ResNet-18, as torchvision has it
        '11,689,512'
    """

    block: Literal["basic", "bottleneck"] = "basic"
    stages: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    classes: int = 1000
    side: int = 224
    channels: int = 3

    def __post_init__(self) -> None:
        if self.block not in ("basic", "bottleneck"):
            raise ValueError(f"block must be 'basic' or 'bottleneck', got {self.block!r}")
        if not self.stages or min(self.stages) < 1 or self.width < 1:
            raise ValueError(f"width and every stage must be positive, got width={self.width}, stages={self.stages}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(height, width, channels)."""
        return (self.side, self.side, self.channels)

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network."""
        return _ResNet(self, rngs)


class _Convolution(nnx.Module):
    """A convolution padded by half its kernel on either side, and its BatchNorm."""

    def __init__(self, old: int, new: int, kernel: int, stride: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            old,
            new,
            (kernel, kernel),
            strides=(stride, stride),
            padding=((kernel // 2, kernel // 2),) * 2,
            use_bias=False,
            kernel_init=jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(new, momentum=0.9, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w old"]) -> Float[Array, "n h2 w2 new"]:
        return self.norm(self.conv(x))


class _Block(nnx.Module):
    def __init__(self, kind: str, old: int, width: int, stride: int, rngs: nnx.Rngs):
        kernels = ((3, stride), (3, 1)) if kind == "basic" else ((1, 1), (3, stride), (1, 1))
        new = _widened(kind, width)
        widths = (old, *(width,) * (len(kernels) - 1), new)
        self.layers = nnx.List([_Convolution(widths[k], widths[k + 1], *kernel, rngs) for k, kernel in enumerate(kernels)])
        self.shortcut = None if (old, stride) == (new, 1) else _Convolution(old, new, 1, stride, rngs)

    def __call__(self, x: Float[Array, "n h w old"]) -> Float[Array, "n h2 w2 new"]:
        y = x
        for layer in self.layers[:-1]:
            y = nnx.relu(layer(y))
        return nnx.relu(self.layers[-1](y) + (x if self.shortcut is None else self.shortcut(x)))


def _widened(kind: str, width: int) -> int:
    return width if kind == "basic" else 4 * width


class _ResNet(nnx.Module):
    def __init__(self, config: ResNet, rngs: nnx.Rngs):
        self.stem = _Convolution(config.channels, config.width, 7, 2, rngs)
        old, stages = config.width, []
        for stage, count in enumerate(config.stages):
            blocks = []
            for k in range(count):
                width = config.width * 2**stage
                blocks.append(_Block(config.block, old, width, 2 if stage and not k else 1, rngs))
                old = _widened(config.block, width)
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.head = nnx.Linear(old, config.classes, rngs=rngs)

    def __call__(self, x: Float[Array, "n side side channels"]) -> Float[Array, "n classes"]:
        x = nnx.relu(self.stem(x))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.head(x.mean((1, 2)))
