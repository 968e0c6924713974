"""What an axis of a tensor is made of: labels.

`NodeAxis` (one node, with its role), `Product` (a flattened image: positions x channels), `Segments` (concatenation,
zero-padded shortcut, fused projection), `Cases` (another node at each place of a stacked axis) and `Fixed` (held as it is).
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["out", "in"]
Interval = tuple[int, int]


@dataclass(frozen=True)
class Fixed:
    """An axis, or a part of one, that no map touches. It has a name where nodes are indexed by it (the steps of a loop).

    Attributes:
        size: its length.
        name: what nodes that are indexed by it call it; empty for all others.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> graph = alignment.trace(apply, {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}, jnp.ones((1, 2)))
        >>> graph.axes["up"][0]  # the inputs mean something, each of them
        Fixed(size=2, name='')
    """

    size: int
    name: str = ""

    def __str__(self) -> str:
        return f"fixed {self.size}"


@dataclass(frozen=True)
class NodeAxis:
    """An axis that runs over the units of one node.

    Role `out`: the axis produces the node's features and is contracted with `push`; role `in`: it consumes them and is
    contracted with the transpose of `pull`.

    Attributes:
        node: the name of the node.
        size: its units here.
        role: "out" or "in".

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> graph = alignment.trace(apply, {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}, jnp.ones((1, 2)))
        >>> graph.axes["up"][1], graph.axes["down"][0]  # made by one tensor, read by the other
        (NodeAxis(node='up', size=3, role='out'), NodeAxis(node='up', size=3, role='in'))
    """

    node: str
    size: int
    role: Role

    def __str__(self) -> str:
        return f"{self.node}:{self.role}"


@dataclass(frozen=True)
class Product:
    """A row-major product of labels, the first factor outermost.

    Attributes:
        factors: their labels. An index goes row by row: the last factor varies fastest.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0).reshape(-1, 6) @ v["down"]
        >>> v = {"up": jnp.ones((2, 3)), "down": jnp.ones((6, 1))}
        >>> print(alignment.trace(apply, v, jnp.ones((4, 2))).axes["down"][0])
        fixed 2 x up:in
    """

    factors: tuple["AxisLabel", ...]

    @property
    def size(self) -> int:
        """Length of the axis."""
        return math.prod(f.size for f in self.factors)

    def __str__(self) -> str:
        return " x ".join(map(str, self.factors))


@dataclass(frozen=True)
class Part:
    """One part of a segmented axis: a label and the intervals of the axis that it fills, in order.

    Attributes:
        label: what the part is made of.
        intervals: (start, end) on the axis.

    Example:
        >>> apply = lambda v, x: jnp.concatenate([jnp.tanh(x @ v["a"]), jnp.tanh(x @ v["b"])], axis=1) @ v["down"]
        >>> v = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 4)), "down": jnp.ones((7, 1))}
        >>> [(part.label.node, part.intervals) for part in alignment.trace(apply, v, jnp.ones((1, 2))).axes["down"][0].parts]
        [('a', ((0, 3),)), ('b', ((3, 7),))]
    """

    label: "AxisLabel"
    intervals: tuple[Interval, ...]


@dataclass(frozen=True)
class Segments:
    """An axis made of parts. A node may fill several intervals: the padded channels on both sides of a shortcut.

    Attributes:
        parts: in the order in which the axis is built, those of several intervals last.

    Example:
        >>> apply = lambda v, x: jnp.concatenate([jnp.tanh(x @ v["a"]), jnp.tanh(x @ v["b"])], axis=1) @ v["down"]
        >>> v = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 4)), "down": jnp.ones((7, 1))}
        >>> print(alignment.trace(apply, v, jnp.ones((1, 2))).axes["down"][0])
        [a:in[0:3] | b:in[3:7]]
    """

    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Length of the axis."""
        return sum(b - a for part in self.parts for a, b in part.intervals)

    def __str__(self) -> str:
        pieces = sorted((a, f"{p.label}[{a}:{b}]") for p in self.parts for a, b in p.intervals)
        return "[" + " | ".join(text for _, text in pieces) + "]"


@dataclass(frozen=True)
class Cases:
    """An axis that runs over another node at each place of a fixed axis of the same tensor, by name (stacked q, k and v).

    Attributes:
        index: the name of the fixed axis.
        options: the label at each of its places, all of one size.

    Example:
        >>> apply = lambda v, x: jnp.tanh(x @ v["two"][0]) @ v["a"] + jnp.tanh(x @ v["two"][1]) @ v["b"]
        >>> v = {"two": jnp.ones((2, 2, 3)), "a": jnp.ones((3, 1)), "b": jnp.ones((3, 1))}
        >>> print(alignment.trace(apply, v, jnp.ones((1, 2))).axes["two"][2])
        {two#1:out or two#2:out}
    """

    index: str
    options: tuple["AxisLabel", ...]

    @property
    def size(self) -> int:
        """Length of the axis."""
        return self.options[0].size

    def __str__(self) -> str:
        return "{" + " or ".join(map(str, self.options)) + "}"


AxisLabel = Fixed | NodeAxis | Product | Segments | Cases


def node_axes(label: AxisLabel) -> Iterator[NodeAxis]:
    """Every node that stands anywhere on an axis with this label."""
    match label:
        case NodeAxis():
            yield label
        case Product(children) | Cases(_, children):
            for child in children:
                yield from node_axes(child)
        case Segments(parts):
            for part in parts:
                yield from node_axes(part.label)


def mentions(label: AxisLabel, node: str) -> bool:
    """Whether the units of `node` stand anywhere on an axis with this label."""
    return any(axis.node == node for axis in node_axes(label))


def new_size(label: AxisLabel, widths: Mapping[str, int]) -> int:
    """The length of an axis with this label when nodes have other widths; those that are not named keep theirs."""
    match label:
        case NodeAxis(node, size):
            return widths.get(node, size)
        case Product(factors):
            return math.prod(new_size(f, widths) for f in factors)
        case Segments(parts):
            return sum(new_size(part.label, widths) for part in parts)
        case Cases(_, options):
            return new_size(options[0], widths)
        case Fixed(size):
            return size


def shared(sizes: Sequence[int], width: int) -> list[int]:
    """A new width divided between the intervals of a node as its old units were, to the nearest unit."""
    ends = [round(width * end / sum(sizes)) for end in itertools.accumulate(sizes, initial=0)]
    return [b - a for a, b in itertools.pairwise(ends)]
