"""How similar the blocks of two experts are: unbiased minibatch CKA of what they read and of what they make."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import npmerge as nm
from alignment import MinibatchCKA
from alignment.activations.cka import HSICs, hsics_of
from alignment.graph import Graph, PyTree
from experiments.language import graph_of

READ, MADE = "what the block reads", "what the block makes"
PLACES = {READ: ("up", "inputs"), MADE: ("down", "outputs")}
"""Of a feed-forward block: the layer, and the side of it."""


@dataclass(frozen=True)
class BlockCKA(MinibatchCKA):
    """`MinibatchCKA` of sites in the place of nodes: the stream in front of each block and the branch behind it.

    All tokens of a batch are samples. Finalised to "PLACE/BLOCK" -> (models,).
    """

    def measure(self, apply: Callable[..., PyTree], graph: Graph, models: Sequence[PyTree], batch: tuple) -> dict[str, HSICs]:
        """The three HSICs of one batch, times its samples."""
        sites = [site.name for site in graph.sites if "/feed_forward/" in site.name]
        found = [nm.capture(apply, graph, model, batch[0], nodes=(), sites=sites).sites for model in models]
        hsics = {}
        for place, (layer, side) in PLACES.items():
            for name in (site for site in sites if f"/{layer}/" in site):
                key = f"{place}/{block_of(name)}"
                hsics[key] = hsics_of(key, [getattr(features[name], side) for features in found])
        return hsics


def block_of(path: str) -> int:
    """The number of the block that a leaf or a site is in."""
    parts = path.split("/")
    return int(parts[parts.index("blocks") + 1])


def similarities(apply: Callable[..., PyTree], models: Sequence[PyTree], batches: Sequence[tuple]) -> Iterator[dict[str, Any]]:
    """Of the first of two models with the second, a row for each block and place."""
    graph = graph_of(apply, models[0], batches[0][0])
    found = nm.collect(apply, graph, models, batches, [BlockCKA()])[BlockCKA]
    for key in sorted(found, key=lambda key: (key.split("/")[0], int(key.split("/")[1]))):
        place, block = key.split("/")
        yield {"place": place, "block": int(block), "cka": round(float(np.asarray(found[key])[1]), 5)}
