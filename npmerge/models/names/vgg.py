"""VGG in torchvision's names, which count every layer: convolution, BatchNorm, ReLU and pooling."""

from collections.abc import Mapping
from typing import Any

from npmerge.models.names.table import (
    Architecture,
    Flattened,
    Name,
    Names,
    Shapes,
    batch_norm,
    convolution,
    linear,
    numbers,
    shape,
)
from npmerge.models.vgg import Vgg


def names(config: Vgg) -> Names:
    """The table: dense layers have a ReLU and dropout between them."""
    rows: list[Name] = []
    index, normed = 0, config.norm == "batch"
    for stage, widths in enumerate(config.stages):
        for k in range(len(widths)):
            rows += convolution(f"features.{index}", f"stages/{stage}/{k}/conv", bias=True)
            rows += batch_norm(f"features.{index + 1}", f"stages/{stage}/{k}/norm") if normed else ()
            index += 3 if normed else 2
        index += 1
    rows += linear("classifier.0", "dense/0", layout=Flattened(config.flat_side))
    for k in range(1, len(config.dense) + 1):
        rows += linear(f"classifier.{3 * k}", f"dense/{k}")
    return Names(tuple(rows))


def fields(shapes: Shapes, described: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """See `Architecture.fields`; `side` may be given, and is otherwise the one that needs no averaging."""
    normed = "features.1.running_mean" in shapes
    convolutions = [k for k in numbers(shapes, r"^features\.(\d+)\.weight$") if len(shapes[f"features.{k}.weight"]) == 4]
    stages: list[list[int]] = []
    for before, k in zip([-9, *convolutions], convolutions, strict=False):
        if k - before > (3 if normed else 2):
            stages.append([])
        stages[-1].append(shapes[f"features.{k}.weight"][0])
    dense = [shapes[f"classifier.{k}.weight"][0] for k in numbers(shapes, r"^classifier\.(\d+)\.weight$")]
    flat = round((shape(shapes, "classifier.0.weight")[1] / stages[-1][-1]) ** 0.5)
    side = given.get("side", flat * 2 ** len(stages))
    return {
        "stages": tuple(map(tuple, stages)),
        "dense": tuple(dense[:-1]),
        "classes": dense[-1],
        "channels": shape(shapes, "features.0.weight")[1],
        "norm": "batch" if normed else "none",
        "side": side,
        "pooled": None if side == flat * 2 ** len(stages) else flat,
    }


ARCHITECTURE = Architecture(Vgg, names, fields, (r"features\.0\.weight", r"classifier\.0\.weight"))
