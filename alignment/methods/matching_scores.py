"""Coordinate descent on the inner product of two sets of weights, at a cost in proportion to what moves."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from alignment.assignment import assign_copies, assign_two_level
from alignment.blocks import Bare
from alignment.graph import Graph, Node
from alignment.methods.matching_blocks import Block, Layout
from alignment.permutations import Order, Orders, after, reordered, unmoved

Scores = Float[np.ndarray, "*copies places units"]

LARGE = 2**17
"""Arrays of so many numbers get no fresh memory in the middle of the descent: it costs as much as to fill them."""


class Change(NamedTuple):
    """By how much these slices of a block changed; places on the last axis that they name, all of those before it."""

    slices: tuple
    values: np.ndarray


class Descent:
    """Two sets of weights, and the orders of the second that have been found so far.

    Scores of a node are computed at its first turn and kept: entry (p, u) is what their unit that is at place u now would add
    to the objective at place p, with all else as it is. When another node moves, only the slices that moved are multiplied
    again, and not before the scores are asked for: most of what happens between two turns of a node happens to the same
    slices. A node whose tensors have not changed since its last turn has nothing to gain and is passed over.

    Args:
        graph: whose nodes are matched.
        labels: of each block of the tensors, as `alignment.permutations.blocks` cuts them, or what is known of them already.
        ours: the blocks of the first model.
        theirs: the blocks of the second, which stay as they are.

    Attributes:
        orders: node -> the unit of the second model put at each place (*copies, units).
    """

    def __init__(
        self,
        graph: Graph,
        labels: Iterable[Layout | Sequence[Bare]],
        ours: Iterable[np.ndarray],
        theirs: Iterable[np.ndarray],
    ) -> None:
        self.orders = unmoved(graph)
        self._graph = graph
        layouts = (x if isinstance(x, Layout) else Layout(x) for x in labels)
        self._blocks = [Block(x, a, b.copy()) for x, a, b in zip(layouts, ours, theirs, strict=True)]
        self._carrying = {n.name: [b for b in self._blocks if {*n.index, n.name} <= {*b.carried}] for n in graph.nodes.values()}
        self._holding = {name: [b for b in self._blocks if name in b.nodes] for name in graph.nodes}
        self._inside = {
            n.name: [m for m in graph.nodes.values() if m.index == (*n.index, n.name)] for n in graph.nodes.values()
        }
        self._twice = {name for name, found in self._carrying.items() if any(b.carried.count(name) > 1 for b in found)}
        self._path = {n.name: (*n.index, n.name) for n in graph.nodes.values()}
        self._dear = _dear(graph)
        self._scores: dict[str, Scores] = {}
        self._room = np.empty(0, np.float32)  # for large products
        self._missing: dict[str, dict[Block, list[Change]]] = {name: {} for name in graph.nodes}
        self._stale = set(graph.nodes)

    def sweep(self, names: Iterable[str]) -> bool:
        """Give each of these nodes its best orders in turn. Whether the objective rose, beyond rounding.

        If one costs more than all the others, those take a second turn: so it waits until they have settled a little.
        """
        names = list(names)
        turns = [*names, *(name for name in names if self._dear and name != self._dear)]
        return sum(self._turn(name) for name in turns if name in self._stale) > 0

    @property
    def ours(self) -> list[np.ndarray]:
        """The blocks of the first model."""
        return [b.ours for b in self._blocks]

    @property
    def theirs(self) -> list[np.ndarray]:
        """The blocks of the second model in the orders found so far."""
        return [b.theirs for b in self._blocks]

    def retarget(self, number: int, ours: np.ndarray) -> None:
        """Put another tensor in the place of a block of the first model; the nodes it carries have to be looked at again."""
        block = self._blocks[number]
        change, block.ours = ours - block.ours, ours
        self._stale |= block.nodes
        for name in block.nodes:
            if name in self._scores and block in self._carrying[name]:
                self._catch_up(name, block)
                self._add(name, block, change, block.theirs)

    def moved_blocks(self) -> set[int]:
        """The numbers of the blocks of the second model that have moved since the last call."""
        numbers = {k for k, block in enumerate(self._blocks) if block.moved}
        for k in numbers:
            self._blocks[k].moved = False
        return numbers

    def _turn(self, name: str) -> bool:
        self._stale.discard(name)
        move = self._best_move(self._graph.nodes[name])
        if move is not None:
            self._apply(move)
        return move is not None

    def _best_move(self, node: Node) -> Orders | None:
        """The best orders of a node and what it indexes, or None if they do not raise the objective by more than rounding."""
        scores = self.scores(node)
        move = {node.name: assign_copies(scores)}
        if not self._inside[node.name] and (move[node.name] == np.arange(node.size)).all():
            return None
        rounding = 1e-7 * max(scores.max(initial=0), -scores.min(initial=0)) * node.size
        candidates = [(self._gain(move), 0, move)]
        if inner := self._inside[node.name]:
            joint = self._two_level(node, inner)
            candidates.append((self._gain(joint), 1, joint))
        gain, _, move = max(candidates, key=lambda c: c[:2])
        return move if gain > rounding else None

    def _gain(self, move: Orders) -> float:
        if (name := self._alone(move)) is not None:
            scores, order = self._scores[name].reshape(-1, *self._scores[name].shape[-2:]), move[name]
            copies, places = np.arange(len(scores))[:, None], np.arange(order.shape[-1])
            return float((scores[copies, places, order.reshape(len(scores), -1)] - scores[copies, places, places]).sum())
        # a tensor that carries the node twice moves on both axes at once: the scores only approximate its share
        return float(
            sum(np.vdot(b.ours, reordered(self._graph, b.labels, b.theirs, move) - b.theirs) for b in self._touched(move))
        )

    def _alone(self, move: Orders) -> str | None:
        """The only node of a move, unless some tensor carries it twice."""
        (name, *others) = move
        return None if others or name in self._twice else name

    def _touched(self, move: Orders) -> list[Block]:
        if len(move) == 1:
            return self._holding[next(iter(move))]
        return [b for b in self._blocks if not b.nodes.isdisjoint(move)]

    def scores(self, node: Node) -> Scores:
        """How well each of their units fits each of our places (*copies, places, units), with all else as it is."""
        if node.name not in self._scores:
            self._scores[node.name] = np.zeros((*node.copies, node.size, node.size))
            for block in self._carrying[node.name]:
                self._add(node.name, block, block.ours, block.theirs)
        for block in list(self._missing[node.name]):
            self._catch_up(node.name, block)
        return self._scores[node.name]

    def _apply(self, move: Orders) -> None:
        """Permute theirs, and note what the scores of all nodes beside the moved ones miss from now on."""
        alone = self._alone(move)
        outermost, places = self._changed(move)
        for block in self._touched(move):
            block.moved = True
            axis = block.carried.index(outermost) if outermost else 0
            slices = (slice(None),) * axis + (places,)
            moved = self._moved(block, move, axis, places)
            change = moved - block.theirs[slices]
            block.theirs[slices] = moved
            beside = block.nodes - {alone}
            self._stale |= beside
            for name in beside:
                self._note(name, block, Change(slices, change))
        if alone is not None:
            self._scores[alone] = _columns(self._scores[alone], move[alone])
        self.orders = after(self._graph, self.orders, move)

    def _changed(self, move: Orders) -> tuple[str, np.ndarray | slice]:
        """The node (or index) on whose axes nothing changes outside of some places; none if anything may."""
        if (name := self._alone(move)) is None:
            return "", slice(None)
        order = move[name]
        changes = (order != np.arange(order.shape[-1])).reshape(len(order), -1).any(1)
        most = changes.mean() > 0.75  # a copy of nearly all costs more than it saves
        return (*self._graph.nodes[name].index, name)[0], slice(None) if most else np.flatnonzero(changes)

    def _moved(self, block: Block, move: Orders, axis: int, places: np.ndarray | slice) -> np.ndarray:
        """These places of their block after a move."""
        if self._alone(move) == block.carried[axis]:
            return block.theirs.take(move[block.carried[axis]][places], axis)
        return reordered(self._graph, block.labels, block.theirs, move)[(slice(None),) * axis + (places,)]

    def _note(self, name: str, block: Block, change: Change) -> None:
        """The scores of a node miss a change of a block. Several that are larger than the block become one of all of it."""
        if name not in self._scores or block not in self._carrying[name]:
            return
        changes = self._missing[name].setdefault(block, [])
        changes.append(change)
        if len(changes) > 1 and sum(c.values.size for c in changes) > block.theirs.size:
            changes[:] = [_together(block, changes)]

    def _catch_up(self, name: str, block: Block) -> None:
        """Bring the scores of a node up to date with the changes of a block."""
        for slices, values in self._missing[name].pop(block, ()):
            node, moved = self._graph.nodes[name], block.carried[len(slices) - 1]
            where: tuple
            if moved == name:  # what is inside its units moved: theirs at these places are worth something else at every place
                ours, where = block.ours, (..., slices[-1])
            else:
                ours, where = block.ours[slices], tuple(slices[-1] if moved == i else slice(None) for i in node.index)
            self._add(name, block, ours, values, where)

    def _add(self, name: str, block: Block, ours: np.ndarray, theirs: np.ndarray, where: tuple = ()) -> None:
        """Add the products to these places of the scores of a node."""
        scores = self._scores[name]
        for axes in block.layout.axes(self._path[name]):
            a, b = _in_front(ours, axes), _in_front(theirs, axes).mT
            scores[where] += a @ b if scores.size < LARGE else np.matmul(a, b, out=self._room_for((*a.shape[:-1], b.shape[-1])))

    def _room_for(self, shape: tuple[int, ...]) -> np.ndarray:
        size = math.prod(shape)
        if self._room.size < size:
            self._room = np.empty(size, np.float32)
        return self._room[:size].reshape(shape)

    def _two_level(self, node: Node, inner: Sequence[Node]) -> dict[str, np.ndarray]:
        """Orders of a node and of the nodes inside each of its units."""
        names, carrying = [n.name for n in inner], self._carrying[node.name]
        direct = np.zeros((*node.copies, node.size, node.size))
        for block in carrying:
            if not {*names} & {*block.carried}:
                direct += _products(block, block.ours, block.theirs, self._path[node.name])
        within = [self._within(node, child) for child in inner]
        orders = {n.name: np.empty((*n.copies, n.size), int) for n in (node, *inner)}
        for copy in np.ndindex(*node.copies):
            orders[node.name][copy], found = assign_two_level(direct[copy], [w[copy] for w in within])
            for name, order in zip(names, found, strict=True):
                orders[name][copy] = order
        return orders

    def _within(self, node: Node, child: Node) -> Float[np.ndarray, "*copies places groups units units"]:
        """Scores of the units in each group at each place."""
        total = np.zeros((*node.copies, node.size, child.size, node.size, child.size))
        for block in self._carrying[child.name]:
            total += _products(block, block.ours, block.theirs, self._path[child.name], 2).reshape(total.shape)
        return np.swapaxes(total, -3, -2)


def _together(block: Block, changes: Sequence[Change]) -> Change:
    total = np.zeros_like(block.theirs)
    for slices, values in changes:
        total[slices] += values
    return Change((slice(None),), total)


def _dear(graph: Graph) -> str | None:
    """The node whose assignments, cubic in its units, cost more than those of all others together, if there is one."""
    cost = {n.name: math.prod(n.copies) * n.size**3 for n in graph.nodes.values()}
    dearest = max(cost, key=cost.__getitem__, default=None)
    return dearest if dearest is not None and 2 * cost[dearest] > sum(cost.values()) > cost[dearest] else None


def objective(ours: Iterable[np.ndarray], theirs: Iterable[np.ndarray]) -> float:
    """The sum over all blocks of <ours, theirs>, which weight matching raises, in float64."""
    pairs = zip(ours, theirs, strict=True)
    return float(sum(np.einsum("i,i->", a.ravel(), b.ravel(), dtype=np.float64) for a, b in pairs))


def _columns(scores: Scores, order: Order) -> Scores:
    """The scores with their units in this order; where there are many in the same memory, a few rows at a time."""
    if order.ndim > 1:
        return np.take_along_axis(scores, order[..., None, :], -1)
    if scores.size < LARGE:
        return scores.take(order, -1)
    for rows in np.array_split(scores, scores.size // LARGE):
        rows[:] = rows.take(order, -1)
    return scores


def _products(block: Block, ours: np.ndarray, theirs: np.ndarray, names: tuple[str, ...], units: int = 1) -> np.ndarray:
    """Products of all units (the last `units` of the named axes as one) of ours with theirs, over the axes that are not named.

    Summed over the axes that carry the last name.
    """
    (first, *more) = [_in_front(ours, axes, units) @ _in_front(theirs, axes, units).mT for axes in block.layout.axes(names)]
    return sum(more, first)


def _in_front(block: np.ndarray, axes: tuple[int, ...], units: int = 1) -> np.ndarray:
    """These axes in front, the last `units` of them as one, and all others as one."""
    if axes == (block.ndim - 1,):  # these two without a copy
        return block.reshape(-1, block.shape[-1]).T
    if axes == (0,):
        return block.reshape(len(block), -1)
    front = block.transpose([*axes, *(d for d in range(block.ndim) if d not in axes)])
    kept = front.shape[: len(axes) - units]
    rows = math.prod(front.shape[len(kept) : len(axes)])
    return front.reshape(*kept, rows, math.prod(front.shape[len(axes) :]))
