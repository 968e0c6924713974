"""Whether maps leave the function of a network as it is: random elements of all groups, or given maps."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.checks import check_key, check_kinds
from alignment.graph import Graph, Node, PyTree
from alignment.maps import Maps, NodeMap, identity, transport


def random_element(node: Node, key: Array) -> NodeMap:
    """A random element of a node's group for each of its copies, well conditioned: what `verify` applies. Made on the host.

    No unit stays where it is: of two units half of all permutations are the identity, which would verify anything.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    push = np.array([_random_matrix(node, rng) for _ in range(math.prod(node.copies))])
    push = push.reshape(*node.copies, node.size, node.size)
    return NodeMap(push.astype(np.float32), np.linalg.inv(push).astype(np.float32))


def _random_matrix(node: Node, rng: np.random.Generator) -> Float[np.ndarray, "units units"]:
    n, order = node.size, rng.permutation(node.size)
    cycle = np.empty(n, int)
    cycle[order] = np.roll(order, 1)
    mix = np.eye(n)[cycle]
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
        ValueError: for variables of another structure than the one that was traced, or arguments of other kinds.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> v, x = {"up": jnp.array([[1.0, -2.0, 3.0]]), "down": jnp.array([[1.0], [4.0], [9.0]])}, jnp.ones((1, 1))
        >>> graph = alignment.trace(apply, v, x)
        >>> alignment.verify(apply, graph, v, x, key=jax.random.key(0)) < 1e-5
        True
        >>> other = lambda v, x: jnp.sin(x @ v["up"]) @ v["down"]  # sines are not to be scaled
        >>> alignment.verify(other, graph, v, x, key=jax.random.key(0)) > 0.1
        True
    """
    check_kinds("verify takes (apply, graph, variables, *inputs)", (apply, Callable), (graph, Graph))
    return discrepancy(apply, graph, _random_maps(graph, key), variables, *inputs)


def verify_each(apply: Callable[..., PyTree], graph: Graph, variables: PyTree, *inputs: PyTree, key: Array) -> dict[str, float]:
    """`verify` one node at a time: which node is it that changes the function?

    Nodes that belong together but were taken for two are seen here only: moved at once, they might cancel.

    Example:
        >>> apply = lambda v, x: jnp.maximum(jnp.maximum(x @ v["up"], 0) @ v["mid"], 0) @ v["down"]
        >>> v = {"up": jnp.ones((1, 2)), "mid": jnp.arange(6.0).reshape(2, 3), "down": jnp.ones((3, 1))}
        >>> graph = alignment.trace(apply, v, jnp.ones((1, 1)))
        >>> other = lambda v, x: jnp.sin(jnp.maximum(x @ v["up"], 0) @ v["mid"]) @ v["down"]  # sines are not to be scaled
        >>> changes = alignment.verify_each(other, graph, v, jnp.ones((1, 1)), key=jax.random.key(0))
        >>> {node: change > 1e-3 for node, change in changes.items()}
        {'up': False, 'mid': True}
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

    Infinite where an output is NaN. Raises ValueError as `transport` does.

    Example:
        >>> apply = lambda v, x: jnp.tanh(x @ v["up"]) @ v["down"]
        >>> v, x = {"up": jnp.array([[1.0, 0.0]]), "down": jnp.array([[1.0], [0.0]])}, jnp.ones((1, 1))
        >>> graph = alignment.trace(apply, v, x)
        >>> alignment.discrepancy(apply, graph, {"up": alignment.permutation([1, 0])}, v, x)
        0.0
        >>> scale = alignment.general(jnp.diag(jnp.array([2.0, 1.0])))  # tanh does not let a factor pass
        >>> round(alignment.discrepancy(apply, graph, {"up": scale}, v, x), 3)  # |tanh(2) / 2 - tanh(1)| / tanh(1)
        0.367
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
