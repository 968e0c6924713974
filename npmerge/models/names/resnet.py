"""The residual networks for ImageNet in torchvision's names."""

from collections.abc import Mapping
from typing import Any

from npmerge.models.names.table import Architecture, Names, Rows, Shapes, batch_norm, convolution, count, inside, linear, shape
from npmerge.models.resnet import ResNet

STEM = (*convolution("conv1", "stem/conv"), *batch_norm("bn1", "stem/norm"))
LAYERS = [(*convolution(f"conv{k + 1}", f"layers/{k}/conv"), *batch_norm(f"bn{k + 1}", f"layers/{k}/norm")) for k in range(3)]
BLOCKS: dict[str, Rows] = {"basic": (*LAYERS[0], *LAYERS[1]), "bottleneck": (*LAYERS[0], *LAYERS[1], *LAYERS[2])}
SHORTCUT = (*convolution("downsample.0", "shortcut/conv"), *batch_norm("downsample.1", "shortcut/norm"))
HEAD = linear("fc", "head")


def names(config: ResNet) -> Names:
    """The table: the first block of a stage projects its input where its shape changes."""
    rows = [*STEM]
    for stage, blocks in enumerate(config.stages):
        for k in range(blocks):
            projects = not k and (stage or config.block == "bottleneck")
            block = (*BLOCKS[config.block], *(SHORTCUT if projects else ()))
            rows += inside(block, f"layer{stage + 1}.{k}.", f"stages/{stage}/{k}/")
    return Names((*rows, *HEAD))


def fields(shapes: Shapes, described: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """See `Architecture.fields`."""
    width, channels = shape(shapes, "conv1.weight")[:2]
    stages = count(shapes, r"^layer(\d+)\.")
    return {
        "block": "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic",
        "stages": tuple(count(shapes, rf"^layer{k + 1}\.(\d+)\.") for k in range(stages)),
        "width": width,
        "channels": channels,
        "classes": shape(shapes, "fc.weight")[0],
    }


ARCHITECTURE = Architecture(ResNet, names, fields, (r"fc\.weight", r"layer1\.0\.conv1\.weight", r"bn1\.weight"))
