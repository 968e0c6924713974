"""The residual networks for CIFAR in the names of the PyTorch files in circulation."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

from npmerge.models.names.table import Architecture, Names, Shapes, batch_norm, convolution, count, inside, linear, shape
from npmerge.models.resnet_cifar import ResNetCifar

STEM = (*convolution("conv1", "conv"), *batch_norm("bn1", "norm"))
BLOCK = (
    *convolution("conv1", "conv1"),
    *batch_norm("bn1", "norm1"),
    *convolution("conv2", "conv2"),
    *batch_norm("bn2", "norm2"),
)
SHORTCUT = (*convolution("shortcut.0", "conv3"), *batch_norm("shortcut.1", "norm3"))
HEAD = linear("linear", "head")


def names(config: ResNetCifar) -> Names:
    """The table: only a projection has tensors in a shortcut."""

    def block(k: int) -> tuple:
        stage, within = divmod(k, config.blocks)
        projects = config.shortcut == "B" and stage and not within
        return inside((*BLOCK, *(SHORTCUT if projects else ())), f"layer{stage + 1}.{within}.", f"blocks/{k}/")

    return Names((*STEM, *chain.from_iterable(map(block, range(3 * config.blocks))), *HEAD))


def fields(shapes: Shapes, described: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """See `Architecture.fields`."""
    width, channels = shape(shapes, "conv1.weight")[:2]
    return {
        "blocks": count(shapes, r"^layer1\.(\d+)\."),
        "width": width,
        "channels": channels,
        "shortcut": "B" if "layer2.0.shortcut.0.weight" in shapes else "A",
        "classes": shape(shapes, "linear.weight")[0],
    }


ARCHITECTURE = Architecture(ResNetCifar, names, fields, (r"linear\.weight", r"layer3\.0\.conv1\.weight"))
