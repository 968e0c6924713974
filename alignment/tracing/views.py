"""Where in an array of a forward pass a node can be read off, sample by sample."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from alignment.graph import Node, Place, Tap
from alignment.labels import AxisLabel, Fixed, Interval, NodeAxis, Product, Role, Segments, node_axes


class Spot(NamedTuple):
    """A factor of an axis that has a name."""

    name: str
    role: Role | None  # of a node; None for a fixed axis
    part: int
    place: Place


class Views:
    """One array of a forward pass: its labels, its shape and the axes of the loops around it, seen as views of nodes."""

    def __init__(self, labels: Sequence[AxisLabel], shape: Sequence[int], loops: Sequence[Fixed]):
        self.labels, self.shape, self.loops = labels, shape, loops
        self.spots = [spot for d, label in enumerate(labels) for spot in _spots(d, label)]

    def names(self) -> list[str]:
        """The nodes whose features (not their duals) are found here."""
        return [spot.name for spot in self.spots if spot.role == "out"]

    def duals(self) -> list[str]:
        """The nodes whose duals are found here: what they are multiplied with."""
        return [spot.name for spot in self.spots if spot.role == "in"]

    def tap(self, node: Node, location: tuple[int, ...], output: int, *, dual: bool = False) -> tuple[int, Tap] | None:
        """Samples per copy, and the tap that reads a node (or its dual) here, or None.

        Every index of the node must be here too. Any other node would make samples that differ from model to model.
        """
        found = [spot for spot in self.spots if spot.name == node.name]
        if [spot.role for spot in found] != ["in" if dual else "out"]:
            return None
        (mine,) = found
        index = [i for name in node.index if (i := self._index(name, mine)) is not None]
        if len(index) < len(node.index) or not self._alone({node.name, *node.index}, mine):
            return None
        used = {p.axis for p in (mine.place, *index) if isinstance(p, Place)}
        samples = math.prod(n for d, n in enumerate(self.shape) if d not in used)
        samples *= math.prod(loop.size for depth, loop in enumerate(self.loops) if depth not in index)
        return samples, Tap(location, output, mine.place, tuple(index), len(self.loops))

    def _index(self, name: str, node: Spot) -> Place | int | None:
        """The place of an index: beside the node on its axis, on another one, or a loop."""
        found: list[Place | int] = [depth for depth, loop in enumerate(self.loops) if loop.name == name]
        for spot in self.spots:
            same = spot.place.axis == node.place.axis
            if spot.name == name and (spot.part == node.part if same else not spot.place.intervals):
                found.append(spot.place)
        return found[0] if len(found) == 1 else None

    def _alone(self, names: set[str], node: Spot) -> bool:
        """Whether no node stands beside these on the axes that will be samples."""
        for d, label in enumerate(self.labels):
            here = label.parts[node.part].label if d == node.place.axis and isinstance(label, Segments) else label
            if any(axis.node not in names for axis in node_axes(here)):
                return False
        return True


def _spots(d: int, label: AxisLabel) -> Iterator[Spot]:
    """The nodes and named fixed axes on axis `d` that stand bare or as a factor."""
    if isinstance(label, Segments):
        for k, part in enumerate(label.parts):
            yield from _factors(d, k, part.label, part.intervals)
    else:
        yield from _factors(d, 0, label, ())


def _factors(d: int, part: int, label: AxisLabel, intervals: tuple[Interval, ...]) -> Iterator[Spot]:
    factors = label.factors if isinstance(label, Product) else (label,)
    sizes = [f.size for f in factors]
    loose = next((k for k, f in enumerate(factors) if isinstance(f, Fixed) and not f.name), None)
    if loose is not None and not intervals:
        sizes[loose] = -1  # may hold the batch
    for k, factor in enumerate(factors):
        place = Place(d, intervals, tuple(sizes), k)
        if isinstance(factor, NodeAxis):
            yield Spot(factor.node, factor.role, part, place)
        elif isinstance(factor, Fixed) and factor.name:
            yield Spot(factor.name, None, part, place)
