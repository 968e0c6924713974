"""The data of sites that are solved one after another: the originals run once for as many of them as memory holds."""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
from jaxtyping import Array

from alignment.graph import PyTree
from npmerge.least_squares.targets import Networks, Targets


class Piece(NamedTuple):
    """Some of the inputs.

    Attributes:
        inputs: of the networks.
        wanted: by site what it should make of them, None where that is not known yet.
    """

    inputs: PyTree
    wanted: Mapping[str, Array] | None = None


class Pieces:
    """What the sites of a merged network that reads its own features are solved from.

    What they should make does not change while they are solved. It is kept on the host for as many sites at once as
    `memory_limit` holds, in the order in which they are asked for; of a site that is larger than that it is not kept.

    Args:
        targets: what sites should make, as a function of the networks.
        networks: the originals.
        names: of the sites, in that order.
        batches: of inputs.
        memory_limit: in bytes, also for the features of the examples that are gone through at once.
    """

    def __init__(
        self, targets: Targets, networks: Networks, names: Sequence[str], batches: Sequence[PyTree], memory_limit: float
    ):
        self.targets, self.networks, self.names = targets, networks, tuple(names)
        self.batches, self.memory_limit = batches, memory_limit
        self.kept: list[tuple[PyTree, Mapping[str, Array]]] = []  # inputs, and what the sites in memory should make of them

    def of(self, name: str) -> Iterator[Piece]:
        """All inputs, with what one site should make of them."""
        if not any(name in wanted for _, wanted in self.kept):
            several = self._several(name)
            self.kept = []  # before the next are made
            if not several:
                pieces = self.targets.pieces((name,), self.networks, self.batches, self.memory_limit)
                return map(Piece, pieces)
            pieces = self.targets.pieces(several, self.networks, self.batches, self.memory_limit)
            self.kept = [(x, jax.device_get(_wanted(self.targets, several, self.networks, x))) for x in pieces]
        return (Piece(x, {name: wanted[name]}) for x, wanted in self.kept)

    def _several(self, first: str) -> tuple[str, ...]:
        """This site and those behind it that memory holds; none if it does not hold this one."""
        names = self.names[self.names.index(first) :]
        examples = [len(jax.tree.leaves(batch)[0]) for batch in self.batches]
        found = jax.eval_shape(functools.partial(self.targets.wanted, names), self.networks, self.batches[0])
        sizes = [4 * found[name].size * sum(examples) / examples[0] for name in names]
        return tuple(name for name, size in zip(names, itertools.accumulate(sizes), strict=True) if size <= self.memory_limit)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _wanted(targets: Targets, names: tuple[str, ...], networks: Networks, inputs: PyTree) -> dict[str, Array]:
    return targets.wanted(names, networks, inputs)
