"""The best use of a budget in whole units, where what a unit costs depends on how many others there are."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

from alignment.budget.polynomial import Compiled

Nodes = Float[np.ndarray, "*batch nodes"]
STARTS = 12  # at most so many greedy starts, each of which takes other nodes first
KICKS = 8  # so many of the changes of one node are improved
TRIED = 16  # so many exchanges of a node, the most promising, are carried through
ROUNDS = 20  # at most so many, of exchanges and of kicks
ROUNDING = 1e-12  # of one network's cost
TINY = 1e-30  # in the place of a cost of 0


class Knapsack:
    """Maximise worth @ units subject to cost(sizes - units) >= needed, in whole units from 0 to sizes.

    Args:
        cost: of one network by the widths of its nodes: what is left of it once units are taken out.
            No coefficient is negative.
        sizes: how many units each node has.
        worth: of a unit of each node, above 0.
        needed: the least that the cost may come down to.
    """

    def __init__(self, cost: Compiled, sizes: Sequence[int], worth: Float[np.ndarray, " nodes"], needed: float):
        self._cost, self._worth = cost, worth
        self._sizes = np.array(sizes, np.float64)
        self._numbers = np.arange(len(sizes))
        self._needed = needed - ROUNDING * cost(self._sizes)

    def best(self) -> Nodes:
        """The best that an iterated local search finds: exchanges from greedy starts, then from kicks. Deterministic."""
        best = self._best_of([self._greedy(first) for first in self._firsts()])
        for _ in range(ROUNDS):
            kicked = sorted(self._kicks(best), key=self._gain, reverse=True)
            found = self._best_of(kicked[:KICKS]) if kicked else best
            if not self._gains(found, best):
                break
            best = found
        return best

    def _best_of(self, starts: Sequence[Nodes]) -> Nodes:
        """The best after exchanges; the first of equals."""
        different = {tuple(start): start for start in starts}
        return max(map(self._improved, different.values()), key=self._gain)

    def _gain(self, units: Nodes) -> float:
        return float(self._worth @ units)

    def _gains(self, found: Nodes, units: Nodes) -> bool:
        return self._gain(found) > self._gain(units) * (1 + 1e-12)

    def _firsts(self) -> Iterator[list[int]]:
        """Which nodes to take before all others: none, each of the most promising, pairs of them."""
        price = self._cost.along(self._sizes)[1]
        order = np.argsort(-self._worth / np.maximum(price, TINY), kind="stable").tolist()
        first = [[k] for k in order] + [list(pair) for pair in itertools.permutations(order, 2)]
        return iter([[], *first[:STARTS]])

    def _greedy(self, first: list[int]) -> Nodes:
        """Whole nodes while they fit, those in `first` before all others, by worth for cost; then single units."""
        units = np.zeros(len(self._sizes))
        while (units < self._sizes).any():
            along = self._cost.along(self._sizes - units)
            after = _at(along, units - self._sizes)
            rate = np.where(units < self._sizes, self._worth * self._sizes / np.maximum(along[0] - after, TINY), 0)
            k = first.pop(0) if first else int(rate.argmax())
            if after[k] < self._needed:
                break
            units = self._with(units, k, self._sizes[k])
        return self._filled(units)

    def _with(self, units: Nodes, k: int, count: Float[np.ndarray, "*batch"] | float) -> Nodes:
        """With so many of one node."""
        return np.where(self._numbers == k, np.asarray(count)[..., None], units)

    def _room(self, units: Nodes) -> tuple[Nodes, Float[np.ndarray, "powers *batch nodes"]]:
        """How many more units of each node alone fit, and the cost along each node."""
        along = self._cost.along(self._sizes - units)
        low, high = np.zeros(units.shape), self._sizes - units
        while (low < high).any():
            middle = np.ceil((low + high) / 2)
            fits = _at(along, -middle) >= self._needed
            low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        return low, along

    def _filled(self, units: Nodes, allowed: Bool[np.ndarray, " nodes"] | bool = True) -> Nodes:
        """Add units of the nodes that are allowed while one fits, as many as fit of the node worth most for its cost."""
        while True:
            room, along = self._room(units)
            room = np.where(allowed, room, 0)
            if not room.any():
                return units
            rate = np.where(room > 0, self._worth / np.maximum(along[1], TINY), 0)
            units = units + np.where(self._numbers == rate.argmax(-1)[..., None], room, 0)

    def _improved(self, units: Nodes) -> Nodes:
        """Units after exchanges between nodes, while something is gained by them."""
        for _ in range(ROUNDS):
            before = units
            for k in self._numbers.tolist():
                units = self._exchanged(units, k)
            if units is before:
                break
        return units

    def _exchanged(self, units: Nodes, k: int) -> Nodes:
        """1, 2, 4, ... or all units of a node given up for as many as fit of another and then of all, if that gains.

        Only what promises to gain is carried through: where what is left over, spent at the best rate, makes up for the loss.
        """
        given = np.unique([*2 ** np.arange(int(units[k]).bit_length()), units[k]])
        less = self._with(units, k, units[k] - given)
        more, along = self._room(less)
        more = self._with(more, k, 0)
        rate = np.where(less < self._sizes, self._worth / np.maximum(along[1], TINY), 0).max(-1, keepdims=True)
        left = _at(along, -more) - self._needed
        promised = np.where(more > 0, self._worth * more - self._worth[k] * given[:, None] + rate * left, 0)
        tried = np.argsort(-promised, axis=None, kind="stable")[:TRIED]
        rows, others = np.unravel_index(tried[promised.flat[tried] > 0], promised.shape)
        if not len(rows):
            return units
        chosen = self._numbers == others[:, None]
        found = max(self._filled(less[rows] + np.where(chosen, more[rows], 0)), key=self._gain)
        return found if self._gains(found, units) else units

    def _kicks(self, units: Nodes) -> Iterator[Nodes]:
        """Each node without any of its units, the others filled; and each node whole, where others can make room for it."""
        for k in self._numbers.tolist():
            if units[k] > 0:
                yield self._filled(self._with(units, k, 0), self._numbers != k)
            if units[k] < self._sizes[k]:
                yield from self._made_whole(units, k)

    def _made_whole(self, units: Nodes, k: int) -> Iterator[Nodes]:
        """All of one node for all of those others that are worth least for their cost; nothing if it does not fit alone."""
        units = self._with(units, k, self._sizes[k])
        while (along := self._cost.along(self._sizes - units))[0, k] < self._needed:
            given = np.where(self._numbers == k, 0, units)
            if not given.any():
                return
            rate = np.where(given > 0, self._worth * given / np.maximum(_at(along, given) - along[0], TINY), np.inf)
            units = self._with(units, int(rate.argmin()), 0)
        yield self._filled(units)


def _at(along: Float[np.ndarray, "powers *batch nodes"], steps: Nodes) -> Nodes:
    """The polynomials at these steps."""
    return np.polynomial.polynomial.polyval(steps, along, tensor=False)
