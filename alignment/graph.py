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
from jaxtyping import Int

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
    """An axis, or a part of one, that no map touches."""

    size: int

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


AxisLabel = Fixed | NodeAxis | Product | Segments


def positions(label: AxisLabel, node: str) -> Int[np.ndarray, "units copies"] | None:
    """Where on an axis the units of `node` stand: row i lists every index that belongs to unit i. None if nowhere."""
    match label:
        case NodeAxis() if label.node == node:
            return np.arange(label.size)[:, None]
        case Product(factors):
            found = [_in_factor(factors, k, p) for k, f in enumerate(factors) if (p := positions(f, node)) is not None]
        case Segments(parts):
            found = [_in_part(part, p) for part in parts if (p := positions(part.label, node)) is not None]
        case _:
            return None
    return np.concatenate(found, axis=1) if found else None


def _in_factor(factors: Sequence[AxisLabel], k: int, inner_positions: np.ndarray) -> np.ndarray:
    size, inner = factors[k].size, math.prod(f.size for f in factors[k + 1 :])
    outer = math.prod(f.size for f in factors[:k])
    index = (
        np.arange(outer)[None, :, None, None] * (size * inner)
        + inner_positions[:, None, :, None] * inner
        + np.arange(inner)[None, None, None, :]
    )
    return index.reshape(len(inner_positions), -1)


def _in_part(part: Part, local: np.ndarray) -> np.ndarray:
    return np.concatenate([np.arange(a, b) for a, b in part.intervals])[local]


def reordered(label: AxisLabel, node: str, index: Int[np.ndarray, " units"]) -> Int[np.ndarray, " size"]:
    """The order of a whole axis after unit `index[i]` of `node` is put at place i: new axis = old axis[order]."""
    match label:
        case NodeAxis():
            return index if label.node == node else np.arange(label.size)
        case Product(factors):
            orders = np.meshgrid(*(reordered(f, node, index) for f in factors), indexing="ij")
            return np.ravel_multi_index(orders, [f.size for f in factors]).ravel()
        case Segments(parts):
            order = np.arange(label.size)
            for part in parts:
                here = np.concatenate([np.arange(a, b) for a, b in part.intervals])
                order[here] = here[reordered(part.label, node, index)]
            return order
        case Fixed():
            return np.arange(label.size)


@dataclass(frozen=True)
class Node:
    """A set of features with a symmetry. `group` is the largest one known to leave the function exactly unchanged."""

    name: str
    size: int
    group: GroupName


@dataclass(frozen=True)
class Pinned:
    """An axis of a tensor that is held fixed, wholly or in part, and why."""

    path: str
    axis: int
    reason: str


@dataclass(frozen=True)
class Tap:
    """Where a forward pass computes a node's features.

    `location` indexes the equation, one number for each level of nested calls, `output` which of its results, `axis`
    the feature axis and `intervals` the part of it that belongs to the node. It does not depend on the batch size.
    """

    location: tuple[int, ...]
    output: int
    axis: int
    intervals: tuple[Interval, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """The symmetry graph of a function of `variables`, as `alignment.trace` returns it.

    Attributes:
        nodes: every node by name, in the order in which the network computes them.
        axes: for each leaf of the variables, by path, one label per axis.
        pinned: every axis that is held fixed, with the reason.
        taps: for each node, where its features appear in a forward pass.
        shapes: the shape of each leaf by path.
    """

    nodes: Mapping[str, Node]
    axes: Mapping[str, tuple[AxisLabel, ...]]
    pinned: Sequence[Pinned]
    taps: Mapping[str, Tap]
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)

    def touching(self, node: str) -> dict[str, list[int]]:
        """The axes that carry a node: path -> axis numbers."""
        found = {
            path: [i for i, label in enumerate(labels) if positions(label, node) is not None]
            for path, labels in self.axes.items()
        }
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
            mine = [p for p in parts if positions(p.label, node) is not None]
            return ", ".join(f"{a}:{b} {_describe(p.label, node)}" for p in mine for a, b in p.intervals)
        case Fixed():
            return str(label)


def flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by path, in the spelling used everywhere: keys joined with "/"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): leaf for path, leaf in leaves}


def path_name(path: tuple) -> str:
    """A key path of `jax.tree_util` as a string such as `params/Dense_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
