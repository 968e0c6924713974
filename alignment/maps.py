"""Maps of nodes and what they do to a network: `NodeMap`, its constructors, `transport`, `verify`, `discrepancy`."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from alignment.graph import (
    AxisLabel,
    Fixed,
    Graph,
    Interval,
    Node,
    NodeAxis,
    Part,
    Product,
    PyTree,
    Segments,
    path_name,
)

HIGHEST = jax.lax.Precision.HIGHEST


class NodeMap(NamedTuple):
    """A linear map of a node's features: `new = push @ old`, and back, `old ~ pull @ new`.

    `pull @ push` is the identity unless the map narrows the node; a rectangular map changes the width.
    """

    push: Float[Array | np.ndarray, "new old"]
    pull: Float[Array | np.ndarray, "old new"]


Maps = Mapping[str, NodeMap]


def identity(size: int) -> NodeMap:
    """The map that changes nothing: two identity matrices (size, size)."""
    eye = np.eye(size, dtype=np.float32)
    return NodeMap(eye, eye)


def permutation(index: Int[Array, " units"]) -> NodeMap:
    """Put old unit `index[i]` at place i (the convention of Git Re-Basin): new = old[index].

    Raises ValueError if some unit is missing or doubled.
    """
    if not isinstance(index, jax.core.Tracer) and not np.array_equal(np.sort(np.asarray(index)), np.arange(len(index))):
        raise ValueError(f"not a permutation of {len(index)} units: {np.asarray(index).tolist()}")
    push = jax.nn.one_hot(index, len(index), dtype=jnp.float32)
    return NodeMap(push, push.T)


def orthogonal(q: Float[Array, "units units"]) -> NodeMap:
    """A rotation or reflection: new = q @ old. The caller answers for q being orthogonal."""
    q = jnp.asarray(q)
    return NodeMap(q, q.T)


def general(push: Float[Array, "units units"]) -> NodeMap:
    """Any invertible map: new = push @ old. The inverse is computed on the host in float64.

    Raises ValueError if `push` is singular or not square.
    """
    matrix = np.asarray(push, np.float64)
    if matrix.ndim != 2 or np.linalg.matrix_rank(matrix) < max(matrix.shape):
        raise ValueError(f"general needs an invertible matrix, got one of shape {matrix.shape}, singular or not square")
    return NodeMap(jnp.asarray(push), jnp.asarray(np.linalg.inv(matrix).astype(np.asarray(push).dtype)))


def rectangular(push: Float[Array, "new old"], pull: Float[Array, "old new"]) -> NodeMap:
    """A map between widths. Raises ValueError unless `push` is (new, old) and `pull` is (old, new)."""
    if np.shape(push) != np.shape(pull)[::-1]:
        raise ValueError(f"pull must have the shape of push transposed: got {np.shape(push)} and {np.shape(pull)}")
    return NodeMap(jnp.asarray(push), jnp.asarray(pull))


def compose(after: NodeMap, before: NodeMap) -> NodeMap:
    """The map that applies `before`, then `after`."""
    return NodeMap(_matmul(after.push, before.push), _matmul(before.pull, after.pull))


def invert(m: NodeMap) -> NodeMap:
    """The map back: push (new, old) and pull (old, new) change places."""
    return NodeMap(m.pull, m.push)


def transport(graph: Graph, maps: Maps, variables: PyTree) -> PyTree:
    """Apply one map per node to every tensor that carries the node.

    Out axes are contracted with `push`, in axes with `pull` transposed; nodes without a map stay as they are. The work is
    done in float32 and rounded once to the stored dtype. Differentiable in the maps and in the variables.

    Args:
        graph: the traced graph of the network.
        maps: a map for each node to move, by name. A map whose `new` differs from `old` changes the width of the node.
        variables: the parameters and statistics, with the structure that was traced.

    Raises:
        ValueError: for a node that the graph does not have, a map of the wrong size, variables of another structure, or a
            change of width on a node that fills several intervals of an axis.
    """
    graph.check(variables)
    for name, m in maps.items():
        if name not in graph.nodes:
            raise ValueError(f"no node named {name!r}; the graph has {', '.join(graph.nodes)}")
        if not isinstance(m, NodeMap):
            raise ValueError(f"the map of {name!r} must be a NodeMap, got {type(m).__name__}")
        if m.push.shape[1] != graph.nodes[name].size:
            raise ValueError(f"the map of {name!r} takes {m.push.shape[1]} units, the node has {graph.nodes[name].size}")
        if m.pull.shape != m.push.shape[::-1]:
            raise ValueError(f"the map of {name!r} has push {m.push.shape} and pull {m.pull.shape}: expected the transpose")
    return _moved(graph, dict(maps), variables)


@functools.partial(jax.jit, static_argnums=0)
def _moved(graph: Graph, maps: Maps, variables: PyTree) -> PyTree:

    def move(path: tuple, leaf: Array) -> Array:
        labels = graph.axes[path_name(path)]
        moved = [d for d, label in enumerate(labels) if _carries(label, maps)]
        if not moved:
            return leaf
        x = leaf.astype(jnp.float32)
        for d in moved:
            x = jnp.moveaxis(_along_first(labels[d], maps, jnp.moveaxis(x, d, 0)), 0, d)
        return x.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(move, variables)


def _carries(label: AxisLabel, maps: Maps) -> bool:
    match label:
        case NodeAxis(node):
            return node in maps
        case Product(factors):
            return any(_carries(f, maps) for f in factors)
        case Segments(parts):
            return any(_carries(p.label, maps) for p in parts)
        case Fixed():
            return False


def _along_first(label: AxisLabel, maps: Maps, x: Array) -> Array:
    """Apply the maps to the first axis of `x`, whose structure `label` describes."""
    match label:
        case NodeAxis(node, _, role) if node in maps:
            return _matmul(maps[node].push if role == "out" else maps[node].pull.T, x)
        case Product(factors):
            rest = x.shape[1:]
            x = x.reshape(*(f.size for f in factors), *rest)
            for k, factor in enumerate(factors):
                x = jnp.moveaxis(_along_first(factor, maps, jnp.moveaxis(x, k, 0)), 0, k)
            return x.reshape(math.prod(x.shape[: len(factors)]), *rest)
        case Segments(parts):
            pieces = [piece for part in parts for piece in _moved_part(part, maps, x)]
            return jnp.concatenate([values for _, values in sorted(pieces, key=lambda piece: piece[0])], axis=0)
    return x


def _moved_part(part: Part, maps: Maps, x: Array) -> list[tuple[Interval, Array]]:
    """The transformed pieces of one part, each with the interval of the old axis that it stands for."""
    lengths = [b - a for a, b in part.intervals]
    new = _along_first(part.label, maps, jnp.concatenate([x[a:b] for a, b in part.intervals], axis=0))
    if len(lengths) > 1 and new.shape[0] != sum(lengths):
        raise ValueError(f"{part.label} fills several intervals of an axis, so its width cannot change")
    cuts = np.cumsum(lengths)[:-1].tolist() if len(lengths) > 1 else []
    return list(zip(part.intervals, jnp.split(new, cuts, axis=0), strict=True))


def _matmul(matrix: Array | np.ndarray, x: Array | np.ndarray) -> Array:
    return jnp.tensordot(_float32(matrix), _float32(x), axes=(1, 0), precision=HIGHEST)


def _float32(x: Array | np.ndarray) -> Array:
    return jnp.asarray(x).astype(jnp.float32)


def random_element(node: Node, key: Array) -> NodeMap:
    """A random element of a node's group, well conditioned: what `verify` applies."""
    keys = jax.random.split(key, 3)
    mix = permutation(jax.random.permutation(keys[0], node.size))
    if node.group in ("orthogonal", "linear"):
        mix = orthogonal(jnp.linalg.qr(jax.random.normal(keys[1], (node.size, node.size)))[0])
    if node.group in ("scale", "linear"):
        factors = jax.random.uniform(keys[2], (node.size,), minval=0.5, maxval=2.0)
        mix = compose(mix, NodeMap(jnp.diag(factors), jnp.diag(1 / factors)))
    if node.group == "linear":
        mix = compose(mix, orthogonal(jnp.linalg.qr(jax.random.normal(keys[0], (node.size, node.size)))[0]))
    return mix


def verify(apply: Callable[..., PyTree], graph: Graph, variables: PyTree, *inputs: PyTree, key: Array) -> float:
    """The function-preservation check: apply a random group element to every node at once and compare the outputs.

    Returns:
        max |f(g . variables) - f(variables)| / max |f(variables)|: below 1e-5 in float32 when the graph is right.
    """
    return discrepancy(apply, graph, _random_maps(graph, key), variables, *inputs)


@functools.partial(jax.jit, static_argnums=0)
def _random_maps(graph: Graph, key: Array) -> Maps:
    keys = jax.random.split(key, max(len(graph.nodes), 1))
    return {name: random_element(node, k) for (name, node), k in zip(graph.nodes.items(), keys, strict=False)}


def discrepancy(apply: Callable[..., PyTree], graph: Graph, maps: Maps, variables: PyTree, *inputs: PyTree) -> float:
    """How far given maps change the function: max |f(moved) - f(variables)| / max |f(variables)|, the worst of its outputs.

    Infinite where an output is NaN.
    """
    worst = float(_largest_change(apply, graph, dict(maps), variables, inputs))
    return math.inf if math.isnan(worst) else worst


@functools.partial(jax.jit, static_argnums=(0, 1))
def _largest_change(apply: Callable[..., PyTree], graph: Graph, maps: Maps, variables: PyTree, inputs: tuple) -> Array:
    before = jax.tree.leaves(apply(variables, *inputs))
    after = jax.tree.leaves(apply(transport(graph, maps, variables), *inputs))
    return jnp.stack([_change(_float32(a), _float32(b)) for a, b in zip(after, before, strict=True)]).max()


def _change(after: Array, before: Array) -> Array:
    scale = jnp.max(jnp.abs(before))
    return jnp.max(jnp.abs(after - before)) / jnp.where(scale > 0, scale, 1)
