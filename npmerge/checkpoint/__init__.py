"""Checkpoints: trees of arrays as files, one format a file.

`save` and `load` keep any tree as it is; `save_network` and `load_network` keep a network of `npmerge.models` with the
configuration that builds it.
"""

from npmerge.checkpoint.network import load_network, save_network
from npmerge.checkpoint.safetensors import load, load_record, save

__all__ = ["load", "load_network", "load_record", "save", "save_network"]
