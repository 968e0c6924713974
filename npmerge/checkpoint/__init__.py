"""Checkpoints: trees of arrays as files, one format a file.

`save` and `load` keep any tree as it is; `save_network` and `load_network` keep a network of `npmerge.models` with the
configuration that builds it; `load_named`, `from_named` and `to_named` are for the names that PyTorch's users have;
`torch_module` makes functions of any module of PyTorch.
"""

from typing import TYPE_CHECKING

from alignment.lazy import make_lazy

if TYPE_CHECKING:
    from npmerge.checkpoint.names import from_named, load_named, named_shapes, to_named
    from npmerge.checkpoint.network import load_network, save_network
    from npmerge.checkpoint.recognise import config_of
    from npmerge.checkpoint.safetensors import load, load_record, save
    from npmerge.checkpoint.torch_network import TorchNetwork, torch_module
else:
    make_lazy(
        __name__,
        {
            "npmerge.checkpoint.names": "from_named load_named named_shapes to_named",
            "npmerge.checkpoint.network": "load_network save_network",
            "npmerge.checkpoint.recognise": "config_of",
            "npmerge.checkpoint.safetensors": "load load_record save",
            "npmerge.checkpoint.torch_network": "TorchNetwork torch_module",
        },
    )

__all__ = [
    "TorchNetwork",
    "config_of",
    "from_named",
    "load",
    "load_named",
    "load_network",
    "load_record",
    "named_shapes",
    "save",
    "save_network",
    "to_named",
    "torch_module",
]
