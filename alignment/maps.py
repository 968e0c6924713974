"""Maps of nodes and what they do to a network: `NodeMap`, its constructors, `transport`."""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from alignment.blocks import Bare, axis_of, each_block
from alignment.checks import unknown
from alignment.graph import Graph, PyTree, path_name
from alignment.labels import NodeAxis, mentions

HIGHEST = jax.lax.Precision.HIGHEST


class NodeMap(NamedTuple):
    """A linear map of a node's features: `new = push @ old`, and back, `old ~ pull @ new`.

    `pull @ push` is the identity unless the map narrows the node; a rectangular map changes the width. The map of an indexed
    node (head_dim inside heads) has one matrix for each place of its index, in leading axes. It acts first: `push[h]` acts
    on what is at place h of the index before the map of the index moves that.

    Attributes:
        push: (*copies, new, old) what features are multiplied with.
        pull: (*copies, old, new) what brings them back; its transpose acts on what reads the node.

    Example:
        >>> swap = alignment.permutation([1, 0, 2])
        >>> features = jnp.array([10.0, 20.0, 30.0])
        >>> (swap.push @ features).tolist()
        [20.0, 10.0, 30.0]
        >>> (swap.pull @ swap.push @ features).tolist()
        [10.0, 20.0, 30.0]
    """

    push: Float[Array | np.ndarray, "*copies new old"]
    pull: Float[Array | np.ndarray, "*copies old new"]


Maps = Mapping[str, NodeMap]


def identity(size: int, copies: tuple[int, ...] = ()) -> NodeMap:
    """The map that changes nothing: two identity matrices (*copies, size, size).

    Example:
        >>> m = alignment.identity(2, copies=(3,))  # of a node with two units in each of three heads
        >>> m.push.shape, m.push[0].tolist()
        ((3, 2, 2), [[1.0, 0.0], [0.0, 1.0]])
    """
    eye = np.broadcast_to(np.eye(size, dtype=np.float32), (*copies, size, size))
    return NodeMap(eye, eye)


def permutation(index: Int[Array, "*copies units"]) -> NodeMap:
    """Put old unit `index[i]` at place i (the convention of Git Re-Basin): new = old[index].

    Raises ValueError if some unit is missing or doubled.

    Example:
        >>> m = alignment.permutation([2, 0, 1])
        >>> (m.push @ jnp.array([10.0, 20.0, 30.0])).tolist()
        [30.0, 10.0, 20.0]
    """
    if not isinstance(index, jax.core.Tracer):
        given = np.asarray(index)
        if not np.array_equal(np.sort(given), np.broadcast_to(np.arange(given.shape[-1]), given.shape)):
            raise ValueError(f"not a permutation of {given.shape[-1]} units: {given.tolist()}")
    push = jax.nn.one_hot(index, np.shape(index)[-1], dtype=jnp.float32)
    return NodeMap(push, push.mT)


def is_permutation(node_map: NodeMap) -> bool:
    """Whether a map only puts units in other places. Host code."""
    push = np.asarray(node_map.push)
    ones = (push.max(-1, initial=0) == 1).all() and (push.sum(-2) == 1).all()
    square = push.shape[-1] == push.shape[-2] and np.array_equal(np.asarray(node_map.pull), push.swapaxes(-1, -2))
    return bool(square and ones and np.count_nonzero(push) == push.size // max(push.shape[-1], 1))


def orthogonal(q: Float[Array, "*copies units units"]) -> NodeMap:
    """A rotation or reflection: new = q @ old. The caller answers for q being orthogonal.

    Example:
        >>> quarter = alignment.orthogonal(jnp.array([[0.0, -1.0], [1.0, 0.0]]))
        >>> (quarter.push @ jnp.array([1.0, 0.0])).tolist(), (quarter.pull @ jnp.array([0.0, 1.0])).tolist()
        ([0.0, 1.0], [1.0, 0.0])
    """
    q = jnp.asarray(q)
    return NodeMap(q, q.mT)


def general(push: Float[Array, "*copies units units"]) -> NodeMap:
    """Any invertible map: new = push @ old. The inverse is computed on the host in float64.

    Raises ValueError if `push` is singular or not square.

    Example:
        >>> m = alignment.general(jnp.array([[1.0, 1.0], [0.0, 2.0]]))
        >>> m.pull.tolist()
        [[1.0, -0.5], [0.0, 0.5]]
    """
    matrix = np.asarray(push, np.float64)
    if matrix.ndim < 2 or (np.linalg.matrix_rank(matrix) < max(matrix.shape[-2:])).any():
        raise ValueError(f"general needs an invertible matrix, got one of shape {matrix.shape}, singular or not square")
    return NodeMap(jnp.asarray(push), jnp.asarray(np.linalg.inv(matrix).astype(np.asarray(push).dtype)))


def rectangular(push: Float[Array, "*copies new old"], pull: Float[Array, "*copies old new"]) -> NodeMap:
    """A map between widths. Raises ValueError unless `push` is (..., new, old) and `pull` is (..., old, new).

    Example:
        >>> mean = alignment.rectangular(jnp.array([[0.5, 0.5]]), jnp.array([[1.0], [1.0]]))  # two units become one
        >>> (mean.push @ jnp.array([2.0, 4.0])).tolist()
        [3.0]
    """
    if np.shape(push) != _transposed(np.shape(pull)):
        raise ValueError(f"pull must have the shape of push transposed: got {np.shape(push)} and {np.shape(pull)}")
    return NodeMap(jnp.asarray(push), jnp.asarray(pull))


def compose(after: NodeMap, before: NodeMap) -> NodeMap:
    """The map that applies `before`, then `after`.

    Example:
        >>> swap, turn = alignment.permutation([1, 0, 2]), alignment.permutation([1, 2, 0])
        >>> both = alignment.compose(turn, swap)
        >>> (both.push @ jnp.array([10.0, 20.0, 30.0])).tolist()  # swapped to 20, 10, 30, then turned
        [10.0, 30.0, 20.0]
    """
    return NodeMap(_matmul(after.push, before.push), _matmul(before.pull, after.pull))


def invert(m: NodeMap) -> NodeMap:
    """The map back: push (new, old) and pull (old, new) change places.

    Example:
        >>> turn = alignment.permutation([1, 2, 0])
        >>> back = alignment.compose(alignment.invert(turn), turn)
        >>> back.push.tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
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
        ValueError: for a node that the graph does not have, a map of the wrong size, or variables of another structure.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> v, x = {"up": jnp.array([[1.0, 2.0, 3.0]]), "down": jnp.array([[1.0], [4.0], [9.0]])}, jnp.ones((1, 1))
        >>> graph = alignment.trace(apply, v, x)
        >>> moved = alignment.transport(graph, {"up": alignment.permutation([2, 0, 1])}, v)
        >>> moved["up"].tolist(), moved["down"].tolist()
        ([[3.0, 1.0, 2.0]], [[9.0], [1.0], [4.0]])
        >>> apply(v, x).item(), apply(moved, x).item()
        (36.0, 36.0)
    """
    graph.check(variables)
    check_maps(graph, maps)
    return _moved(graph, dict(maps), variables)


def check_maps(graph: Graph, maps: Maps) -> None:
    """Raise ValueError for a node that the graph does not have or a map that does not fit its node."""
    for name, m in maps.items():
        if name not in graph.nodes:
            raise ValueError(unknown("node", name, graph.nodes))
        if not isinstance(m, NodeMap):
            raise ValueError(f"the map of {name!r} must be a NodeMap, got {type(m).__name__}")
        size, copies = graph.nodes[name].size, graph.nodes[name].copies
        if m.push.shape[-1] != size:
            raise ValueError(f"the map of {name!r} takes {m.push.shape[-1]} units, the node has {size}")
        if m.push.shape[:-2] != copies:
            raise ValueError(f"the map of {name!r} has copies {m.push.shape[:-2]}, the node {copies} (indexed by its `index`)")
        if m.pull.shape != _transposed(m.push.shape):
            raise ValueError(f"the map of {name!r} has push {m.push.shape} and pull {m.pull.shape}: expected the transpose")


def _transposed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], *shape[-2:][::-1])


@functools.partial(jax.jit, static_argnums=0)
def _moved(graph: Graph, maps: Maps, variables: PyTree) -> PyTree:

    def move(path: tuple, leaf: Array) -> Array:
        labels = graph.axes[path_name(path)]
        if not any(mentions(label, name) for label in labels for name in maps):
            return leaf
        return each_block(labels, leaf.astype(jnp.float32), functools.partial(_apply, graph, maps)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(move, variables)


def _apply(graph: Graph, maps: Maps, labels: Sequence[Bare], x: Array) -> Array:
    """The maps of all nodes of one block."""
    for d, label in carried(graph, labels, maps):
        matrix, axes = factor(graph, maps[label.node], labels, d)
        x = jnp.einsum(_float32(matrix), axes, x, [*range(x.ndim)], replaced(d, x.ndim), precision=HIGHEST)
    return x


def carried(graph: Graph, labels: Sequence[Bare], nodes: Collection[str]) -> list[tuple[int, NodeAxis]]:
    """The axes of a block that carry some of these nodes; indexed ones first, while their indices stand as they were."""
    found = [(d, label) for d, label in enumerate(labels) if isinstance(label, NodeAxis) and label.node in nodes]
    return sorted(found, key=lambda item: -len(graph.nodes[item[1].node].index))


def factor(graph: Graph, m: NodeMap, labels: Sequence[Bare], d: int) -> tuple[Array | np.ndarray, list[int]]:
    """What axis `d` of a block is contracted with: a matrix for each copy, and which axes of the block its own are.

    The new axis has the number of dimensions of the block; `replaced` puts it in the place of the old one.
    """
    label, new = labels[d], len(labels)
    assert isinstance(label, NodeAxis)
    index = [axis_of(labels, name) for name in graph.nodes[label.node].index]
    return (m.push, [*index, new, d]) if label.role == "out" else (m.pull, [*index, d, new])


def replaced(d: int, ndim: int) -> list[int]:
    """The axes of a block of which `d` is a new one."""
    return [ndim if k == d else k for k in range(ndim)]


def _matmul(matrix: Array | np.ndarray, x: Array | np.ndarray) -> Array:
    return jnp.matmul(_float32(matrix), _float32(x), precision=HIGHEST)


def _float32(x: Array | np.ndarray) -> Array:
    return jnp.asarray(x).astype(jnp.float32)
