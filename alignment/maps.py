"""Maps of nodes and what they do to a network: `NodeMap`, its constructors, `transport`, `verify`, `discrepancy`."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from alignment.blocks import Bare, axis_of, each_block
from alignment.checks import check_key, check_kinds, unknown
from alignment.graph import Graph, Node, PyTree, path_name
from alignment.labels import NodeAxis, mentions

HIGHEST = jax.lax.Precision.HIGHEST


class NodeMap(NamedTuple):
    """A linear map of a node's features: `new = push @ old`, and back, `old ~ pull @ new`.

    `pull @ push` is the identity unless the map narrows the node; a rectangular map changes the width. The map of an indexed
    node (head_dim inside heads) has one matrix for each place of its index, in leading axes. It acts first: `push[h]` acts
    on what is at place h of the index before the map of the index moves that.
    """

    push: Float[Array | np.ndarray, "*copies new old"]
    pull: Float[Array | np.ndarray, "*copies old new"]


Maps = Mapping[str, NodeMap]


def identity(size: int, copies: tuple[int, ...] = ()) -> NodeMap:
    """The map that changes nothing: two identity matrices (*copies, size, size)."""
    eye = np.broadcast_to(np.eye(size, dtype=np.float32), (*copies, size, size))
    return NodeMap(eye, eye)


def permutation(index: Int[Array, "*copies units"]) -> NodeMap:
    """Put old unit `index[i]` at place i (the convention of Git Re-Basin): new = old[index].

    Raises ValueError if some unit is missing or doubled.
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
    """A rotation or reflection: new = q @ old. The caller answers for q being orthogonal."""
    q = jnp.asarray(q)
    return NodeMap(q, q.mT)


def general(push: Float[Array, "*copies units units"]) -> NodeMap:
    """Any invertible map: new = push @ old. The inverse is computed on the host in float64.

    Raises ValueError if `push` is singular or not square.
    """
    matrix = np.asarray(push, np.float64)
    if matrix.ndim < 2 or (np.linalg.matrix_rank(matrix) < max(matrix.shape[-2:])).any():
        raise ValueError(f"general needs an invertible matrix, got one of shape {matrix.shape}, singular or not square")
    return NodeMap(jnp.asarray(push), jnp.asarray(np.linalg.inv(matrix).astype(np.asarray(push).dtype)))


def rectangular(push: Float[Array, "*copies new old"], pull: Float[Array, "*copies old new"]) -> NodeMap:
    """A map between widths. Raises ValueError unless `push` is (..., new, old) and `pull` is (..., old, new)."""
    if np.shape(push) != _transposed(np.shape(pull)):
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
        ValueError: for a node that the graph does not have, a map of the wrong size, or variables of another structure.
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
    """The maps of all nodes of one block; indexed nodes first, while their indices stand as they were."""
    carried = [(d, label) for d, label in enumerate(labels) if isinstance(label, NodeAxis) and label.node in maps]
    for d, label in sorted(carried, key=lambda item: -len(graph.nodes[item[1].node].index)):
        m, axes, new = maps[label.node], list(range(x.ndim)), x.ndim
        index = [axis_of(labels, name) for name in graph.nodes[label.node].index]
        matrix, ends = (m.push, [new, d]) if label.role == "out" else (m.pull, [d, new])
        moved = [new if k == d else k for k in axes]
        x = jnp.einsum(_float32(matrix), [*index, *ends], x, axes, moved, precision=HIGHEST)
    return x


def _matmul(matrix: Array | np.ndarray, x: Array | np.ndarray) -> Array:
    return jnp.matmul(_float32(matrix), _float32(x), precision=HIGHEST)


def _float32(x: Array | np.ndarray) -> Array:
    return jnp.asarray(x).astype(jnp.float32)


def random_element(node: Node, key: Array) -> NodeMap:
    """A random element of a node's group for each of its copies, well conditioned: what `verify` applies. Made on the host."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    push = np.array([_random_matrix(node, rng) for _ in range(math.prod(node.copies))])
    push = push.reshape(*node.copies, node.size, node.size)
    return NodeMap(push.astype(np.float32), np.linalg.inv(push).astype(np.float32))


def _random_matrix(node: Node, rng: np.random.Generator) -> Float[np.ndarray, "units units"]:
    n = node.size
    mix = np.eye(n)[rng.permutation(n)]
    if node.group in ("orthogonal", "linear"):
        mix = np.linalg.qr(rng.standard_normal((n, n)))[0] @ mix
    if node.group in ("scale", "linear"):
        mix = rng.uniform(0.5, 2.0, (n, 1)) * mix
    if node.group == "linear":
        mix = np.linalg.qr(rng.standard_normal((n, n)))[0] @ mix
    return mix


def verify(apply: Callable[..., PyTree], graph: Graph, variables: PyTree, *inputs: PyTree, key: Array) -> float:
    """The function-preservation check: apply a random group element to every node at once and compare the outputs.

    Returns:
        max |f(g . variables) - f(variables)| / max |f(variables)|: below 1e-5 in float32 when the graph is right. What does
        not reach the outputs is not judged: give it generic variables, not those of a branch that was initialised to zero.
        All that the function returns is compared as it is: of training mode give the outputs alone, as
        `lambda v, x: train_apply(v, x)[0]`, for the variables that it returns move with those that it is given.

    Raises:
        ValueError: arguments of other kinds.
    """
    check_kinds("verify takes (apply, graph, variables, *inputs)", (apply, Callable), (graph, Graph))
    return discrepancy(apply, graph, _random_maps(graph, key), variables, *inputs)


def verify_each(apply: Callable[..., PyTree], graph: Graph, variables: PyTree, *inputs: PyTree, key: Array) -> dict[str, float]:
    """`verify` one node at a time: which node is it that changes the function?

    Nodes that belong together but were taken for two are seen here only: moved at once, they might cancel.
    """
    still = {node.name: identity(node.size, node.copies) for node in graph.nodes.values()}
    moved = _random_maps(graph, key)
    return {name: discrepancy(apply, graph, still | {name: moved[name]}, variables, *inputs) for name in moved}


def _random_maps(graph: Graph, key: Array) -> dict[str, NodeMap]:
    check_key(key)
    keys = jax.random.split(key, max(len(graph.nodes), 1))
    return {name: random_element(node, k) for (name, node), k in zip(graph.nodes.items(), keys, strict=False)}


def discrepancy(apply: Callable[..., PyTree], graph: Graph, maps: Maps, variables: PyTree, *inputs: PyTree) -> float:
    """How far given maps change the function: max |f(moved) - f(variables)| / max |f(variables)|, the worst of its outputs.

    Infinite where an output is NaN.
    """
    graph.check(variables)
    worst = float(_largest_change(apply, graph, dict(maps), variables, inputs))
    return math.inf if math.isnan(worst) else worst


@functools.partial(jax.jit, static_argnums=(0, 1))
def _largest_change(apply: Callable[..., PyTree], graph: Graph, maps: Maps, variables: PyTree, inputs: tuple) -> Array:
    before = jax.tree.leaves(apply(variables, *inputs))
    after = jax.tree.leaves(apply(transport(graph, maps, variables), *inputs))
    return jnp.stack([_change(_comparable(a), _comparable(b)) for a, b in zip(after, before, strict=True)]).max()


def _comparable(x: Array) -> Array:
    x = jnp.asarray(x)
    return x if jnp.iscomplexobj(x) else x.astype(jnp.float32)


def _change(after: Array, before: Array) -> Array:
    if not before.size:
        return jnp.zeros(())
    scale = jnp.max(jnp.abs(before))
    return jnp.max(jnp.abs(after - before)) / jnp.where(scale > 0, scale, 1.0)
