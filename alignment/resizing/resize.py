"""A network with other widths, by its graph alone: the same function over tensors whose nodes have grown or shrunk."""

import functools
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from alignment.checks import check_count, kind_of, unknown
from alignment.graph import Graph, PyTree, Signature, as_shapes, flatten
from alignment.labels import AxisLabel, new_size, node_axes
from alignment.resizing.program import evaluate
from alignment.resizing.sizes import Sizes
from alignment.resizing.values import Shape
from alignment.tracing.trace import walked


@dataclass(frozen=True)
class Resized:
    """`apply` for variables of other widths. Called as `apply` is, and compiled for each shape of the inputs.

    It can be traced, learned, resized again and compared like any other function.

    Attributes:
        apply: the function that was traced.
        signature: the variables that it takes, as shapes.
        widths: the units of each node that has changed, in the order of the names.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0).reshape(1, 3) @ v["down"]
        >>> v, small = ({"up": jnp.ones((1, n)), "down": jnp.ones((n, 1))} for n in (3, 2))
        >>> graph = alignment.trace(apply, v, jnp.ones((1, 1)))
        >>> resized = alignment.resize(apply, graph, small)
        >>> resized.widths, resized(small, jnp.ones((1, 1))).item()
        ((('up', 2),), 2.0)
        >>> alignment.trace(resized, small, jnp.ones((1, 1))).nodes["up"].size  # a function like any other
        2
    """

    apply: Callable[..., PyTree]
    signature: Signature
    widths: tuple[tuple[str, int], ...]

    def __call__(self, variables: PyTree, *inputs: PyTree) -> PyTree:
        """What `apply` returns, computed from variables of the new shapes."""
        return _run(self, variables, inputs)


def resize(apply: Callable[..., PyTree], graph: Graph, variables: PyTree, widths: Mapping[str, int] | None = None) -> Resized:
    """The function that a network is for variables whose nodes have other widths.

    What a layer's code says of sizes (reshapes, broadcasts, zero padding, slices of fused projections) is rewritten along the
    axes of the nodes. So it serves networks whose code has its widths written into it. `transport` with rectangular maps makes
    the variables.

    Numbers that stand for a width n follow where they undo a sum over n units: n in a mean, n - 1 in an unbiased variance, the
    root of n in an RMSNorm, log(n) of an entropy, a constant vector with entries 1 / n. Others that equal n, its root, its
    logarithm or one over these, and meet features of that width or what was contracted over it, stay as they are with a
    warning that names them and their line; the scale of attention stays without one. See `alignment.resizing.width_numbers`.
    What is not recognised, and stays silently, are other functions of a width, such as the root of 2 / n.

    Args:
        apply: the network, in evaluation or training mode: `(variables, *inputs) -> outputs`, or `-> (outputs, variables
            with new statistics)`.
        graph: its graph, with the old widths.
        variables: arrays or shapes, with the new ones.
        widths: the new units of each node that has changed; by default what `widths_of` reads off the variables.

    Raises:
        ValueError: variables of another structure, or whose shapes are not those of the graph with other widths; widths that
            are no positive integers by the names of nodes.

    Warns:
        UserWarning: when it is called, once for each number that stays and may stand for a width that has changed.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0).reshape(1, 3) @ v["down"]  # a width is written into the code
        >>> v, x = {"up": jnp.array([[1.0, 2.0, 3.0]]), "down": jnp.ones((3, 1))}, jnp.ones((1, 1))
        >>> graph = alignment.trace(apply, v, x)
        >>> narrower = alignment.rectangular(jnp.array([[1.0, 0, 0], [0, 0.5, 0.5]]), jnp.array([[1.0, 0], [0, 1], [0, 1]]))
        >>> small = alignment.transport(graph, {"up": narrower}, v)
        >>> small["up"].tolist(), small["down"].tolist()
        ([[1.0, 2.5]], [[1.0], [2.0]])
        >>> alignment.resize(apply, graph, small)(small, x).item(), apply(v, x).item()
        (6.0, 6.0)
    """
    found = widths_of(graph, variables, widths)
    changed = {name: width for name, width in found.items() if width != graph.nodes[name].size}
    structure = jax.tree.structure(variables)
    leaves = tuple((graph.shapes[path], jnp.result_type(x)) for path, x in flatten(variables).items())
    return Resized(apply, (structure, leaves), tuple(sorted(changed.items())))


def widths_of(graph: Graph, variables: PyTree, known: Mapping[str, int] | None = None) -> dict[str, int]:
    """The units that each node has in variables of other shapes than those of the graph.

    Args:
        graph: the graph, with the old widths.
        variables: arrays or shapes, with the new ones.
        known: widths that are known already. Where shapes leave it open (heads x head_dim on one axis), the nodes that
            others are indexed by are otherwise taken to keep theirs.

    Raises:
        ValueError: if no widths of the nodes make these shapes (the path and both shapes are named), or several do (the nodes
            and the axis are named); a node that the graph does not have, a width that is no positive integer.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> v, wide = ({"up": jnp.ones((2, n)), "down": jnp.ones((n, 1))} for n in (3, 8))
        >>> alignment.widths_of(alignment.trace(apply, v, jnp.ones((1, 2))), wide)
        {'up': 8}
    """
    found = _checked(graph, {} if known is None else known)
    shapes = {path: np.shape(x) for path, x in flatten(variables).items()}
    if odd := sorted(shapes.keys() ^ graph.shapes.keys()):
        raise ValueError(f"variables do not fit the graph: {odd[0]!r} is a leaf of only one of them")
    axes = [pair for path, labels in graph.axes.items() for pair in zip(labels, shapes[path], strict=False)]

    def solve() -> None:  # bare axes first, then products and segments in which one node is left unknown
        for _ in graph.nodes:
            found.update((name, n) for label, size in axes for name, n in _solved(label, size, found))

    solve()
    indexing = {name for node in graph.nodes.values() for name in node.index if name in graph.nodes}
    found |= {name: graph.nodes[name].size for name in indexing - found.keys()}
    solve()
    unsolved = graph.nodes.keys() - found.keys()
    found = {name: found.get(name, node.size) for name, node in graph.nodes.items()}
    for path, labels in graph.axes.items():
        expected = tuple(new_size(label, found) for label in labels)
        if shapes[path] != expected:
            _refuse(path, labels, shapes[path], expected, unsolved)
    return found


def _checked(graph: Graph, known: Mapping[str, int]) -> dict[str, int]:
    """The widths that are given. Raises ValueError as `widths_of` does."""
    if not isinstance(known, Mapping):
        raise ValueError(f"widths must be a mapping from nodes to numbers of units, got {kind_of(known)}")
    if foreign := [name for name in known if name not in graph.nodes]:
        raise ValueError(unknown("node", foreign[0], graph.nodes))
    for name, width in known.items():
        check_count(f"the width of {name!r}", width)
    return {name: int(width) for name, width in known.items()}


def _refuse(path: str, labels: Sequence[AxisLabel], got: Shape, expected: Shape, unsolved: Set[str]) -> None:
    """Say why the shape of a leaf is not the one of the widths that were found."""
    for d, label in enumerate(labels[: len(got)]):
        several = sorted({axis.node for axis in node_axes(label)} & unsolved)
        if got[d] != expected[d] and len(several) > 1:
            names = " and ".join(map(repr, several))
            raise ValueError(
                f"the widths of {names} cannot be told apart: together they fill axis {d} of {path!r}, which has "
                f"{got[d]} units instead of {label.size}. Give the widths of all but one of them, as numbers "
                "of units by name: the rows of their maps, `maps[name].push.shape[-2]`, if `transport` made the variables"
            )
    raise ValueError(f"no widths of the nodes give {path!r} the shape {got}: the nearest is {expected}")


def _solved(label: AxisLabel, size: int, known: Mapping[str, int]) -> list[tuple[str, int]]:
    """The width of the only node of an axis that is not known yet, from the size of the axis."""
    unsolved = {axis.node for axis in node_axes(label)} - known.keys()
    if len(unsolved) != 1:
        return []
    (name,) = unsolved
    fits = [n for n in range(1, size + 1) if new_size(label, {**known, name: n}) == size]
    return [(name, fits[0])] if len(fits) == 1 else []


@functools.partial(jax.jit, static_argnums=0)  # equal values share what is compiled
def _run(resized: Resized, variables: PyTree, inputs: tuple) -> PyTree:
    old = as_shapes(resized.signature)
    walk = walked(resized.apply, old, inputs)
    _, atoms = walk.graph()
    if missing := [name for name, _ in resized.widths if name not in atoms]:
        raise ValueError(f"the function has no node named {missing[0]!r}: was it traced with other inputs?")
    sizes = Sizes(walk.terms, {name: atoms[name] for name, _ in resized.widths}, dict(resized.widths))
    expected = {path: tuple(map(sizes.axis, value.axes, value.shape)) for path, value in walk.params.items()}
    for path, leaf in flatten(variables).items():
        if np.shape(leaf) != expected.get(path):
            raise ValueError(
                f"variables do not fit the widths at {path!r}: got {np.shape(leaf)}, expected {expected.get(path)}"
            )
    outputs = evaluate(walk, sizes, [*jax.tree.leaves(variables), *jax.tree.leaves(inputs)])
    return jax.tree.unflatten(walk.structure, outputs)
