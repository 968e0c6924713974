"""The published networks: where they come from, and how they are read from any path in their layouts."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import npmerge as nm
from alignment.graph import Graph, PyTree
from npmerge.checkpoint.names import load_named
from npmerge.models import Config, Network, abstract, example

FOLDER = Path("../shared/data/resnet_cifar10")
"""Where the networks are looked for."""

SOURCES = {
    "resnet20_akamaster": "github.com/akamaster/pytorch_resnet_cifar10, pretrained_models/resnet20-12fca82f.th",
    "resnet20_zheng": "github.com/Zheng-Jiakun/pytorch_resnet_cifar10, save_resnet20/model.th",
    "resnet20_bognev": "github.com/bognev/pytorch_resnet_cifar10_filter_level_pruning, save_temp/model.th",
    "resnet56_akamaster": "github.com/akamaster/pytorch_resnet_cifar10, pretrained_models/resnet56-4bfd9763.th",
    "resnet56_zheng": "github.com/Zheng-Jiakun/pytorch_resnet_cifar10, save_resnet56/model.th",
}
"""The repositories that publish them, and the file there."""


class Strangers(NamedTuple):
    """Networks of one architecture, with what tracing has found.

    Attributes:
        names: of the networks.
        config: their architecture.
        network: it without variables.
        models: their variables.
        graph: the units that can be exchanged.
        error: how far the outputs of the first network move if units are exchanged as the graph says (`verify`).
    """

    names: tuple[str, ...]
    config: Config
    network: Network
    models: list[PyTree]
    graph: Graph
    error: float


def find(name: str, folder: Path = FOLDER) -> Path:
    """The file of a network: a path, or a name in the folder.

    Raises:
        ValueError: if it is not there (with where to get it).
    """
    tried = [Path(name), *(folder / f"{name}{ending}" for ending in (".th", ".pth", ".pt", ".safetensors"))]
    for path in tried:
        if path.is_file():
            return path
    source = SOURCES.get(name)
    where = f"get {source}, as {folder / name}.th" if source else f"known ones are {', '.join(SOURCES)}"
    raise ValueError(f"no network {name}, neither a file nor in {folder}: {where}, or give files with --networks")


def load(names: Sequence[str], folder: Path = FOLDER) -> Strangers:
    """Read networks, trace the first, and check the graph.

    Raises:
        ValueError: networks that are not there, or of different architectures (which).
    """
    found = [load_named(find(name, folder)) for name in names]
    config = found[0][0]
    for name, (other, _) in zip(names, found, strict=True):
        if other != config:
            raise ValueError(f"{names[0]} is {config}, {name} is {other}: networks that are merged must be of one architecture")
    (network, graph), models = _traced(config), [variables for _, variables in found]
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=example(config, 16).shape), jnp.float32)
    error = float(nm.verify(network.apply, graph, models[0], inputs, key=jax.random.key(0)))
    short = tuple(Path(name).stem for name in names)
    return Strangers(short, config, network, models, graph, error)


@functools.cache
def _traced(config: Config) -> tuple[Network, Graph]:
    """An architecture and its graph, once for all that is merged of it: what is compiled for a graph is compiled once."""
    network = abstract(config)
    return network, nm.trace(network.apply, network.variables, example(config))
