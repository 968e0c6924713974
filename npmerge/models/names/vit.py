"""The vision transformer in torchvision's names; queries, keys and values are one tensor there."""

from collections.abc import Mapping
from typing import Any

from npmerge.models.names.table import (
    AS_IS,
    LINEAR,
    Architecture,
    Fused,
    Name,
    Names,
    Shapes,
    convolution,
    count,
    inside,
    linear,
    norm,
    shape,
)
from npmerge.models.vit import Vit

FIRST = (Name("class_token", ("class_token",)), *convolution("conv_proj", "patches", bias=True))
POSITIONS = (Name("encoder.pos_embedding", ("positions",)),)
PARTS = ("query", "key", "value")
BLOCK = (
    *norm("ln_1", "norm1"),
    Name("self_attention.in_proj_weight", tuple(f"attention/{part}/kernel" for part in PARTS), Fused(LINEAR)),
    Name("self_attention.in_proj_bias", tuple(f"attention/{part}/bias" for part in PARTS), Fused(AS_IS)),
    *linear("self_attention.out_proj", "attention/out"),
    *norm("ln_2", "norm2"),
    *linear("mlp.0", "feed_forward/up"),
    *linear("mlp.3", "feed_forward/down"),
)
LAST = (*norm("encoder.ln", "norm"), *linear("heads.head", "head"))
SPELLINGS = ((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3."))  # until torchvision 0.12


def names(config: Vit) -> Names:
    """The table."""
    rows = [*FIRST, *POSITIONS]
    for k in range(config.layers):
        rows += inside(BLOCK, f"encoder.layers.encoder_layer_{k}.", f"blocks/{k}/")
    return Names((*rows, *LAST), SPELLINGS)


def fields(shapes: Shapes, described: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """See `Architecture.fields`."""
    width, channels, patch, _ = shape(shapes, "conv_proj.weight")
    return {
        "patch": patch,
        "width": width,
        "channels": channels,
        "layers": count(shapes, r"\.encoder_layer_(\d+)\."),
        "hidden": _hidden(shapes),
        "classes": shape(shapes, "heads.head.weight")[0],
        "side": round((shape(shapes, "encoder.pos_embedding")[1] - 1) ** 0.5) * patch,
    }


def _hidden(shapes: Shapes) -> int:
    first = "encoder.layers.encoder_layer_0.mlp"
    return shape(shapes, f"{first}.0.weight" if f"{first}.0.weight" in shapes else f"{first}.linear_1.weight")[0]


ARCHITECTURE = Architecture(Vit, names, fields, ("class_token", r"encoder\.pos_embedding"), asks=("heads",))
