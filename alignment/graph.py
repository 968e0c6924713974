"""The symmetry graph of a network: nodes, axis labels, pins and taps, and the checks on them.

A **node** is a set of features that can be transformed by one map without changing the function (the hidden units of a
layer; a residual stream). An **axis label** says how one axis of one tensor is built from nodes: `NodeAxis` (one node,
with its role), `Product` (a flattened image: positions x channels), `Segments` (concatenation, zero-padded shortcut) and
`Fixed` (held as it is). `alignment.trace` builds the graph; everything that aligns, taps or transports reads it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

from alignment.sites import Site

PyTree = Any
STATISTICS = r"(^|/)(batch_stats|running_mean|running_var)(/|$)|^(?!params/)(.*/)?(mean|var)(/value)?$"
"""Paths of running statistics, which are estimated from data and never matched or merged as weights are.

Flax Linen keeps them under `batch_stats`, PyTorch calls them `running_mean` and `running_var`, NNX `mean` and `var` (which are
weights where they stand under `params`).
"""
Role = Literal["out", "in"]
GroupName = Literal["permutation", "scale", "orthogonal", "linear"]
Interval = tuple[int, int]


@dataclass(frozen=True)
class Fixed:
    """An axis, or a part of one, that no map touches. It has a name where nodes are indexed by it (the steps of a loop)."""

    size: int
    name: str = ""

    def __str__(self) -> str:
        return f"fixed {self.size}"


@dataclass(frozen=True)
class NodeAxis:
    """An axis that runs over the units of one node.

    Role `out`: the axis produces the node's features and is contracted with `push`; role `in`: it consumes them and is
    contracted with the transpose of `pull`.
    """

    node: str
    size: int
    role: Role

    def __str__(self) -> str:
        return f"{self.node}:{self.role}"


@dataclass(frozen=True)
class Product:
    """A row-major product of labels, the first factor outermost."""

    factors: tuple["AxisLabel", ...]

    @property
    def size(self) -> int:
        """Length of the axis."""
        return math.prod(f.size for f in self.factors)

    def __str__(self) -> str:
        return " x ".join(map(str, self.factors))


@dataclass(frozen=True)
class Part:
    """One part of a segmented axis: a label and the intervals of the axis that it fills, in order."""

    label: "AxisLabel"
    intervals: tuple[Interval, ...]


@dataclass(frozen=True)
class Segments:
    """An axis made of parts. A node may fill several intervals: the padded channels on both sides of a shortcut."""

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
    """An axis that runs over another node at each place of a fixed axis of the same tensor, by name (stacked q, k and v)."""

    index: str
    options: tuple["AxisLabel", ...]

    @property
    def size(self) -> int:
        """Length of the axis."""
        return self.options[0].size

    def __str__(self) -> str:
        return "{" + " or ".join(map(str, self.options)) + "}"


AxisLabel = Fixed | NodeAxis | Product | Segments | Cases


def mentions(label: AxisLabel, node: str) -> bool:
    """Whether the units of `node` stand anywhere on an axis with this label."""
    match label:
        case NodeAxis():
            return label.node == node
        case Product(children) | Cases(_, children):
            return any(mentions(child, node) for child in children)
        case Segments(parts):
            return any(mentions(part.label, node) for part in parts)
        case Fixed():
            return False


@dataclass(frozen=True)
class Node:
    """A set of features with a symmetry. `group` is the largest one known to leave the function exactly unchanged.

    A node may be indexed: head_dim by the heads, the units inside a layer by the steps of a scan over layers. Then it has one
    copy for each place of its `index` and a map of its own for each copy, which acts before the maps of the index do.

    Attributes:
        name: that of the weight which first produces it.
        size: units of one copy.
        group: what may act on each copy.
        index: the nodes or named fixed axes that it is indexed by, fixed ones first, outer before inner.
        copies: the size of each of them.
    """

    name: str
    size: int
    group: GroupName
    index: tuple[str, ...] = ()
    copies: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pinned:
    """An axis of a tensor that is held fixed, wholly or in part: why, and the line of the user's source that says so."""

    path: str
    axis: int
    reason: str
    source: str = ""


@dataclass(frozen=True)
class Place:
    """Where in an array the units of a node (or the places of an index) stand.

    Attributes:
        axis: the axis of the array.
        intervals: the part of the axis, () for all of it.
        sizes: the factors of that part, outermost first; -1 for one that may vary with the batch.
        factor: which of them.
    """

    axis: int
    intervals: tuple[Interval, ...]
    sizes: tuple[int, ...]
    factor: int


@dataclass(frozen=True)
class Tap:
    """Where a forward pass computes a node's features. It does not depend on the batch size.

    Attributes:
        location: the equation, one number for each level of nested calls.
        output: which of its results.
        units: the place of the units.
        index: for each index of the node its place, or the depth of the loop around the equation that it is.
        loops: how many loops are around the equation.
    """

    location: tuple[int, ...]
    output: int
    units: Place
    index: tuple[Place | int, ...] = ()
    loops: int = 0


@dataclass(frozen=True, eq=False)
class Graph:
    """The symmetry graph of a function of `variables`, as `alignment.trace` returns it.

    Attributes:
        nodes: every node by name, in the order in which the network computes them.
        axes: for each leaf of the variables, by path, one label per axis.
        pinned: every axis that is held fixed, with the reason.
        taps: for each node, where its features appear in a forward pass.
        sites: for each weight, the contractions it takes part in.
        shapes: the shape of each leaf by path.
    """

    nodes: Mapping[str, Node]
    axes: Mapping[str, tuple[AxisLabel, ...]]
    pinned: Sequence[Pinned]
    taps: Mapping[str, Tap]
    sites: Sequence[Site]
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)

    def touching(self, node: str) -> dict[str, list[int]]:
        """The axes that carry a node: path -> axis numbers."""
        found = {path: [i for i, label in enumerate(labels) if mentions(label, node)] for path, labels in self.axes.items()}
        return {path: axes for path, axes in found.items() if axes}

    def check(self, variables: PyTree) -> None:
        """Raise ValueError, naming the path and both shapes, unless `variables` has the structure that was traced."""
        got = {path: np.shape(leaf) for path, leaf in flatten(variables).items()}
        for path in [*self.shapes, *got]:
            ours, theirs = self.shapes.get(path, "no such leaf"), got.get(path, "no such leaf")
            if ours != theirs:
                raise ValueError(f"variables do not fit the graph at {path!r}: got {theirs}, traced with {ours}")

    def __str__(self) -> str:
        if not self.nodes:
            return f"no node can move ({len(self.pinned)} axes are held fixed, see graph.pinned): is it in evaluation mode?"
        rows = [("node", "size", "group", "tensors")]
        for name, node in self.nodes.items():
            tensors = [
                f"{path}[{axis}] {_describe(self.axes[path][axis], name)}"
                for path, axes in self.touching(name).items()
                for axis in axes
            ]
            rows += [(name, str(node.size), node.group, tensors[0])]
            rows += [("", "", "", t) for t in tensors[1:]]
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "-" * max(map(len, lines)))
        reasons: dict[str, int] = {}
        for pin in self.pinned:
            reasons[pin.reason] = reasons.get(pin.reason, 0) + 1
        held = "; ".join(f"{reason}: {n}" for reason, n in reasons.items()) or "none"
        return "\n".join([*lines, f"axes held fixed (graph.pinned): {held}"])


def _describe(label: AxisLabel, node: str) -> str:
    """How a node stands on an axis: its role, the part of the axis it fills, what it is multiplied with."""
    match label:
        case NodeAxis():
            return label.role if label.node == node else str(label)
        case Product(factors):
            return " x ".join(_describe(f, node) for f in factors)
        case Segments(parts):
            mine = [p for p in parts if mentions(p.label, node)]
            return ", ".join(f"{a}:{b} {_describe(p.label, node)}" for p in mine for a, b in p.intervals)
        case Cases(_, options):
            return " or ".join(_describe(option, node) for option in options)
        case Fixed():
            return str(label)


def flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by path, in the spelling used everywhere: keys joined with "/"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): leaf for path, leaf in leaves}


def path_name(path: tuple) -> str:
    """A key path of `jax.tree_util` as a string such as `params/Dense_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
