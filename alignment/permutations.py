"""Permutations of many nodes at once, on the host: applied to weights, and one after another."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from alignment.blocks import Bare, axis_of, each_block
from alignment.graph import Graph
from alignment.labels import Fixed, NodeAxis

Order = Int[np.ndarray, "*copies units"]
Orders = Mapping[str, Order]
Weights = dict[str, np.ndarray]


def unmoved(graph: Graph) -> dict[str, Order]:
    """The identity of every node."""
    return {n.name: np.broadcast_to(np.arange(n.size), (*n.copies, n.size)).copy() for n in graph.nodes.values()}


def blocks(graph: Graph, path: str, weight: np.ndarray) -> list[tuple[Sequence[Bare], np.ndarray]]:
    """The blocks of a tensor, each with a bare label for every axis."""
    found: list[tuple[Sequence[Bare], np.ndarray]] = []

    def keep(labels: Sequence[Bare], block: np.ndarray) -> np.ndarray:
        found.append((labels, block))
        return block

    each_block(graph.axes[path], weight, keep)
    return found


def permuted(graph: Graph, path: str, weight: np.ndarray, orders: Orders) -> np.ndarray:
    """A tensor with the units of nodes in new orders: new unit i is old unit `order[i]`."""
    return each_block(graph.axes[path], weight, lambda labels, block: reordered(graph, labels, block, orders))


def after(graph: Graph, orders: Orders, move: Orders) -> dict[str, Order]:
    """The orders that bring units where `orders` and then `move` bring them."""
    indexed = (name for name in orders if not move.keys().isdisjoint(graph.nodes[name].index))
    return {**orders, **{name: _composed(graph, name, orders, move) for name in {*move, *indexed}}}


def inverse(graph: Graph, orders: Orders) -> dict[str, Order]:
    """The orders that undo these: one after the other, either way round, nothing moves."""
    return {name: reordered(graph, _index(graph, name), np.argsort(order, -1), orders) for name, order in orders.items()}


def _composed(graph: Graph, name: str, orders: Orders, move: Orders) -> Order:
    if not graph.nodes[name].index:
        return orders[name][move[name]]
    *copy, old = origins(graph, name, orders, move)
    order = np.empty(old.shape, int)
    order[(*copy, np.broadcast_to(np.arange(old.shape[-1]), old.shape))] = old
    return order


def origins(graph: Graph, name: str, *steps: Orders) -> tuple[np.ndarray, ...]:
    """For what stands at each place of a node after these orders, the copy and the unit that it was before.

    Arrays (*copies, units) of numbers, one for each index of the node and last the unit.
    """
    node = graph.nodes[name]
    labels = [*_index(graph, name), NodeAxis(name, node.size, "out")]
    shape = (*node.copies, node.size)
    units = np.arange(np.prod(shape)).reshape(shape)
    for step in steps:
        units = reordered(graph, labels, units, step)
    return np.unravel_index(units, shape)


def _index(graph: Graph, name: str) -> list[Bare]:
    """A label for each index of a node."""
    node = graph.nodes[name]
    places = zip(node.index, node.copies, strict=True)
    return [NodeAxis(i, n, "out") if i in graph.nodes else Fixed(n, i) for i, n in places]


def reordered(graph: Graph, labels: Sequence[Bare], block: np.ndarray, orders: Orders) -> np.ndarray:
    """A block with the units of nodes in new orders. Indexed nodes first, each copy at its old place."""
    carried = [(d, label.node) for d, label in enumerate(labels) if isinstance(label, NodeAxis) and label.node in orders]
    for d, name in sorted(carried, key=lambda item: -len(graph.nodes[item[1]].index)):
        axes = [*(axis_of(labels, i) for i in graph.nodes[name].index), d]
        front = np.moveaxis(block, axes, range(len(axes)))
        order = orders[name].reshape(*orders[name].shape, *[1] * (front.ndim - len(axes)))
        block = np.moveaxis(np.take_along_axis(front, order, len(axes) - 1), range(len(axes)), axes)
    return block
