"""Weight matching as published, written plainly: what the library's own is timed against.

Ainsworth et al. 2022, "Git Re-Basin": algorithm 1 for two models, algorithm 2 (MergeMany) for more. In each sweep every node
is solved, in random order, from scores that are built anew: each tensor that carries it is permuted from the original on all
of its other axes. Written for nodes without an index that stand once in a tensor (those of ResNets).
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from alignment.blocks import Bare
from alignment.graph import Graph
from alignment.labels import NodeAxis
from alignment.permutations import Weights, blocks

Tensors = list[tuple[Sequence[str | None], np.ndarray]]
"""Blocks of all tensors, with the node on each axis."""
Orders = dict[str, np.ndarray]


def tensors(graph: Graph, weights: Weights) -> Tensors:
    """The weights cut into blocks, once."""
    return [(_nodes(labels), np.array(x)) for path, w in weights.items() for labels, x in blocks(graph, path, w)]


def _nodes(labels: Sequence[Bare]) -> Sequence[str | None]:
    return [label.node if isinstance(label, NodeAxis) else None for label in labels]


def permuted(nodes: Sequence[str | None], x: np.ndarray, orders: Orders, but: str | None = None) -> np.ndarray:
    """A block permuted on all axes but that of one node."""
    for axis, name in enumerate(nodes):
        if name is not None and name != but:
            x = np.take(x, orders[name], axis)
    return x


def weight_matching(graph: Graph, ours: Tensors, theirs: Tensors, rng: np.random.Generator, sweeps: int = 100) -> Orders:
    """Algorithm 1: the orders that bring their units to ours."""
    orders = {name: np.arange(node.size) for name, node in graph.nodes.items()}
    for _ in range(sweeps):
        progress = [_solve(name, graph.nodes[name].size, (ours, theirs), orders) for name in rng.permutation(list(orders))]
        if not any(progress):
            break
    return orders


def _solve(name: str, size: int, pair: tuple[Tensors, Tensors], orders: Orders) -> bool:
    scores = np.zeros((size, size), np.float32)
    for (nodes, a), (_, b) in zip(*pair, strict=True):
        if name in nodes:
            axis, b = nodes.index(name), permuted(nodes, b, orders, but=name)
            scores += np.moveaxis(a, axis, 0).reshape(size, -1) @ np.moveaxis(b, axis, 0).reshape(size, -1).T
    exact = scores.astype(np.float64)
    new, old = linear_sum_assignment(exact, maximize=True)[1], orders[name]
    orders[name], places = new, np.arange(size)
    return bool(exact[places, new].sum() > exact[places, old].sum() + 1e-12)


def merge_many(graph: Graph, models: Sequence[Tensors], rng: np.random.Generator, rounds: int = 100) -> list[Tensors]:
    """Algorithm 2: the models, each matched to the mean of the others until none moves."""
    models, every = list(models), range(len(models))
    for _ in range(rounds):
        moved = False
        for k in rng.permutation(every):
            blocks_of_others = zip(*(models[j] for j in every if j != k), strict=True)
            mean = [(same[0][0], sum(x for _, x in same) / np.float32(len(same))) for same in blocks_of_others]
            orders = weight_matching(graph, mean, models[k], rng)
            moved |= any((o != np.arange(len(o))).any() for o in orders.values())
            models[k] = [(nodes, permuted(nodes, x, orders)) for nodes, x in models[k]]
        if not moved:
            break
    return models
