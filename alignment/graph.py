"""The symmetry graph of a network: nodes, the label of every axis, pins, taps and sites.

A **node** is a set of features that can be transformed by one map without changing the function (the hidden units of a
layer; a residual stream). An **axis label** says how one axis of one tensor is built from nodes (`alignment.labels`).
`alignment.trace` builds the graph; everything that aligns, taps, transports or solves reads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from alignment.checks import other_depth, other_spelling
from alignment.describe import dot, table
from alignment.labels import AxisLabel, Interval, mentions
from alignment.lookups import Lookup
from alignment.names import is_statistic
from alignment.of_torch import check_no_torch
from alignment.sites import Site

PyTree = Any
Signature = tuple[Any, tuple[tuple[tuple[int, ...], Any], ...]]  # the structure of a tree, and shape and dtype of its leaves
GroupName = Literal["permutation", "scale", "orthogonal", "linear"]

LARGER: Mapping[GroupName, tuple[GroupName, ...]] = {
    "permutation": ("permutation", "scale", "orthogonal", "linear"),
    "scale": ("scale", "linear"),
    "orthogonal": ("orthogonal", "linear"),
    "linear": ("linear",),
}
"""For each group those that contain it."""


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

    Example:
        >>> apply = lambda v, x: jnp.einsum("nhd,hdo->no", jnp.tanh(jnp.einsum("ni,ihd->nhd", x, v["in"])), v["out"])
        >>> v = {"in": jnp.ones((2, 4, 3)), "out": jnp.ones((4, 3, 2))}
        >>> graph = alignment.trace(apply, v, jnp.ones((1, 2)))
        >>> for node in graph.nodes.values():
        ...     print(node)
        Node(name='in#1', size=4, group='permutation', index=(), copies=())
        Node(name='in#2', size=3, group='permutation', index=('in#1',), copies=(4,))
    """

    name: str
    size: int
    group: GroupName
    index: tuple[str, ...] = ()
    copies: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pinned:
    """An axis of a tensor that is held fixed, wholly or in part: why, and the line of the user's source that says so.

    Attributes:
        path: of the tensor.
        axis: its number.
        reason: why nothing moves there: "input", "output", what an operation tells apart, a primitive without a rule.
        source: "folder/file.py:line (function)"; empty if that is not known.

    Example:
        >>> apply = lambda v, x: jnp.sort(x @ v["up"], axis=1) @ v["down"]
        >>> graph = alignment.trace(apply, {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}, jnp.ones((1, 2)))
        >>> {(p.path, p.axis): p.reason for p in graph.pinned}
        {('down', 0): 'ranked along this axis', ('up', 0): 'input', ('up', 1): 'ranked along this axis'}
    """

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

    Example:
        >>> apply = lambda v, x: jnp.concatenate([jnp.tanh(x @ v["a"]), jnp.tanh(x @ v["b"])], axis=1) @ v["down"]
        >>> v = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 4)), "down": jnp.ones((7, 1))}
        >>> alignment.trace(apply, v, jnp.ones((1, 2))).taps["b"].units  # where both stand side by side
        Place(axis=1, intervals=((3, 7),), sizes=(4,), factor=0)
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

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> v = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}
        >>> tap = alignment.trace(apply, v, jnp.ones((1, 2))).taps["up"]
        >>> tap.units.axis, tap.loops  # in an array (batch, units), in no loop
        (1, 0)
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
        lookups: for each weight, where its rows are looked up by numbers of the data.
        inputs: the shape of each array of the inputs that were traced.
        dtypes: the dtype of each of those.

    Example:
        >>> apply = lambda v, x: jnp.tanh(x @ v["up"] + v["bias"]) @ v["down"]
        >>> v = {"up": jnp.ones((2, 3)), "bias": jnp.ones((1, 3)), "down": jnp.ones((3, 1))}
        >>> graph = alignment.trace(apply, v, jnp.ones((1, 2)))
        >>> graph.touching("up")
        {'bias': [1], 'down': [0], 'up': [1]}
        >>> [(p.path, p.axis, p.reason) for p in graph.pinned]
        [('up', 0, 'input')]
        >>> print(graph)
        node  size  group        tensors
        ------------------------------------
        up    3     permutation  bias[1] out
                                 down[0] in
                                 up[1] out
        <BLANKLINE>
        axes held fixed (graph.pinned):
          1 x input, first at ...
    """

    nodes: Mapping[str, Node]
    axes: Mapping[str, tuple[AxisLabel, ...]]
    pinned: Sequence[Pinned]
    taps: Mapping[str, Tap]
    sites: Sequence[Site]
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    lookups: Sequence[Lookup] = ()
    inputs: Sequence[tuple[int, ...]] = ()
    dtypes: Sequence[str] = ()

    def touching(self, node: str) -> dict[str, list[int]]:
        """The axes that carry a node: path -> axis numbers."""
        found = {path: [i for i, label in enumerate(labels) if mentions(label, node)] for path, labels in self.axes.items()}
        return {path: axes for path, axes in found.items() if axes}

    def check(self, variables: PyTree) -> None:
        """Raise ValueError, naming the path and both shapes, unless `variables` has the structure that was traced."""
        check_no_torch(variables)
        got = {path: np.shape(leaf) for path, leaf in flatten(variables).items()}
        if got.keys() != self.shapes.keys() and (depth := other_depth(got, self.shapes)):
            raise ValueError(f"variables do not fit the graph in {depth}")
        for path in [*self.shapes, *got]:
            ours, theirs = self.shapes.get(path, "no such leaf"), got.get(path, "no such leaf")
            if ours != theirs:
                slip = other_spelling(got, self.shapes)
                raise ValueError(f"variables do not fit the graph at {path!r}: got {theirs}, traced with {ours}{slip}")

    def to_dot(self) -> str:
        """The graph in the language of Graphviz: nodes as boxes, tensors as edges from what they read to what they make."""
        return dot(self)

    def __str__(self) -> str:
        return table(self)


def admits(node: Node, group: GroupName) -> bool:
    """Whether every element of `group` leaves the function unchanged at this node."""
    return node.group in LARGER[group]


def indexing(graph: Graph) -> frozenset[str]:
    """The nodes that others are indexed by, as heads are."""
    return frozenset(name for node in graph.nodes.values() for name in node.index if name in graph.nodes)


def signature(tree: PyTree) -> Signature:
    """What a function that is traced with a tree depends on, to remember results by."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((np.shape(x), jnp.result_type(x)) for x in leaves)


def as_shapes(signature: Signature) -> PyTree:
    """A tree of shapes with this signature."""
    structure, leaves = signature
    return jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])


def flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by path, in the spelling used everywhere: keys joined with "/". Raises ValueError if two have the same."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = path_name(path)
        if name in found:
            raise ValueError(f"two leaves have the path {name!r}: keys must not hold the separator '/'")
        found[name] = leaf
    return found


def floating(tree: PyTree) -> dict[str, Any]:
    """The leaves of `flatten` that are floating-point, numbers of Python among them."""
    return {path: x for path, x in flatten(tree).items() if jnp.issubdtype(getattr(x, "dtype", type(x)), jnp.floating)}


def weights_of(tree: PyTree) -> dict[str, Any]:
    """The leaves of `floating` that are weights: running statistics are none."""
    return {path: x for path, x in floating(tree).items() if not is_statistic(path)}


def path_name(path: tuple) -> str:
    """A key path of `jax.tree_util` as a string such as `params/Dense_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
