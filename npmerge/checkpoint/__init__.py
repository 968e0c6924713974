"""Checkpoints: trees of arrays as files, one format a file.

`save` and `load` keep any tree as it is; `save_network` and `load_network` keep a network of `npmerge.models` with the
configuration that builds it.
"""

from typing import TYPE_CHECKING

from alignment.lazy import make_lazy

if TYPE_CHECKING:
    from npmerge.checkpoint.network import load_network, save_network
    from npmerge.checkpoint.safetensors import load, load_record, save
else:
    make_lazy(
        __name__,
        {
            "npmerge.checkpoint.network": "load_network save_network",
            "npmerge.checkpoint.safetensors": "load load_record save",
        },
    )

__all__ = ["load", "load_network", "load_record", "save", "save_network"]
