"""Which nodes to keep separate when the merged network may cost so many times one network."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
from jaxtyping import Float

from alignment.costs import By, Costs
from alignment.graph import Graph
from alignment.polynomial import Compiled
from alignment.separability import check_separable, held

Vector = Float[np.ndarray, " nodes"]
STARTS = 12  # at most so many greedy starts, each of which separates other nodes first
BEST = 3  # so many of what is found from them are improved by exchanges
SWEEPS = 5  # at most so many passes over all pairs of nodes
SMALLEST = 1e-5  # of the largest weight; the published floor of weights that are themselves at most 1


@dataclass(frozen=True)
class Allocation:
    """Ratios for `PartialMatching(ratio=allocation.ratios)`.

    Attributes:
        ratios: the fraction of units kept separate, a whole number of units, for every node that was weighed.
        cost: what the partially merged network costs as a multiple of one network, at most the budget.
        gain: the sum over nodes of weight times ratio.
        held: the nodes that cannot change their width, and why.
    """

    ratios: tuple[tuple[str, float], ...]
    cost: float
    gain: float
    held: tuple[tuple[str, str], ...]


def allocate(
    costs: Costs, graph: Graph, weights: Mapping[str, float], budget: float, *, models: int = 2, by: By = "flops"
) -> Allocation:
    """Spend a budget where it is worth most: maximise sum_g w_g r_g subject to cost(r) <= B cost(0) and 0 <= r_g <= 1.

    The quadratic programme of PLeaS (Nasery et al. 2024, arXiv 2407.02447), published for two models and a commercial solver.
    In the merged fractions x = 1 - r a network of N models costs N P(1) - (N - 1) P(x) with P the cost of one network whose
    nodes have the fractions x of their widths, so the constraint is P(x) >= P(1) (N - B) / (N - 1). It is not convex: two
    neighbours that are both separate cost less than the two of them alone. Sequential quadratic programming (scipy's SLSQP)
    starts from a uniform ratio and from greedy choices that each separate another node first; ratios are then rounded down to
    whole units, and single units are added, or exchanged between two nodes, while that gains. The outcome is deterministic,
    keeps to the budget exactly, leaves no room for another unit, and is the best found, though not proven to be the optimum;
    a larger budget may give one node less for the sake of another, for a larger sum.

    Args:
        costs: what `alignment.costs.costs` returned for the network.
        graph: its graph.
        weights: what it is worth to keep a node separate: `disagreement`, `measured_gains`, or your own. Nodes that are not
            named stay merged; a weight below 1e-5 of the largest counts as that.
        budget: the multiple B of the cost of one network, between 1 and N.
        models: the number N of networks to be merged.
        by: "flops" or "parameters".

    Raises:
        ValueError: a budget below 1 or above N, no weights, a negative or non-finite one, a node that cannot change its width.
    """
    check_budget(budget, models)
    check_separable(graph, weights)
    fixed = held(graph)
    names = [name for name in graph.nodes if name in weights and name not in fixed]
    values = np.array([weights[name] for name in names], np.float64)
    if not names or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"weights must be finite and not negative, for at least one node that can change: got {dict(weights)}")
    problem = _Problem(costs, names, np.maximum(values, SMALLEST * values.max() or 1), budget, models, by)
    found = {tuple(units): units for units in map(problem.rounded, problem.solutions())}
    best = sorted(found.values(), key=problem.gain, reverse=True)[:BEST]
    separate = max(map(problem.improved, best), key=problem.gain)
    ratios = separate / problem.sizes
    chosen = dict(zip(names, ratios.tolist(), strict=True))
    return Allocation(
        tuple(chosen.items()), costs.multiple(chosen, models=models, by=by), float(values @ ratios), tuple(fixed.items())
    )


def check_budget(budget: float, models: int) -> None:
    """Raise ValueError for a budget that is not between 1 and the number of models."""
    if models < 2 or not 1 <= budget <= models:
        raise ValueError(f"a budget is between 1 and the number of models, {models}, which is at least 2: got {budget}")


class _Problem:
    """Maximise weights @ r subject to slack(r) >= 0, in whole units."""

    def __init__(self, costs: Costs, names: list[str], weights: Vector, budget: float, models: int, by: By):
        sizes = dict(costs.sizes)
        every = costs.polynomial(by)
        self.sizes = np.array([sizes[name] for name in names], np.float64)
        self.weights = weights
        self._cost: Compiled = every.at({n: size for n, size in sizes.items() if n not in names}).compiled(names)
        self._needed = every(sizes) * (models - budget) / (models - 1)
        self._scale = every(sizes)

    def slack(self, r: Vector) -> float:
        """How much of one network's cost is left of the budget; negative if it is overspent."""
        return (self._cost((1 - r) * self.sizes) - self._needed) / self._scale

    def slope(self, r: Vector) -> Vector:
        """The derivative of the slack by each ratio, never positive."""
        return -self.sizes * self._cost.gradient((1 - r) * self.sizes) / self._scale

    def fits(self, units: Vector) -> bool:
        """Whether so many separate units are within the budget, up to rounding."""
        return self.slack(units / self.sizes) >= -1e-12

    def gain(self, units: Vector) -> float:
        """What so many separate units are worth."""
        return float(self.weights @ (units / self.sizes))

    def solutions(self) -> Iterator[Vector]:
        """Ratios from several starts, and the starts themselves."""
        scaled = self.weights / self.weights.max()
        budget: Any = {"type": "ineq", "fun": self.slack, "jac": self.slope}
        for start in self._starts():
            yield start
            found = scipy.optimize.minimize(  # type: ignore[call-overload]
                lambda r: -float(scaled @ r),
                start,
                jac=lambda r: -scaled,
                bounds=[(0.0, 1.0)] * len(start),
                constraints=budget,
                method="SLSQP",
                tol=1e-10,
            )
            if np.isfinite(found.x).all():
                yield self._within(np.clip(found.x, 0, 1))

    def rounded(self, r: Vector) -> Vector:
        """Whole separate units near these ratios that keep to the budget and use it up."""
        units = np.floor(r * self.sizes + 1e-9)
        while not self.fits(units):  # a step of the solver may end a little outside
            units = np.maximum(units - 1, 0)
        return self._filled(units)

    def improved(self, units: Vector) -> Vector:
        """Units after exchanges between nodes, while something is gained by them."""
        for _ in range(SWEEPS):
            before = self.gain(units)
            for k, other in itertools.permutations(range(len(units)), 2):
                units = self._exchanged(units, k, other)
            if self.gain(units) <= before:
                break
        return units

    def _starts(self) -> Iterator[Vector]:
        """The same ratio everywhere, and greedy choices by gain per cost with each of the most promising nodes first."""
        count = len(self.weights)
        yield self._within(np.ones(count))
        yield self._greedy([])
        worth = self.weights / np.maximum(-self.slope(np.zeros(count)), 1e-30)
        order = np.argsort(-worth, kind="stable").tolist()
        first = [[k] for k in order] + [list(pair) for pair in itertools.permutations(order, 2)]
        yield from map(self._greedy, first[:STARTS])

    def _greedy(self, first: list[int]) -> Vector:
        """Separate whole nodes, those in `first` before all others, then the last one in part."""
        r = np.zeros(len(self.weights))
        while left := np.flatnonzero(r < 1).tolist():
            drop = [max(self.slack(r) - self.slack(_set(r, k, 1.0)), 1e-30) for k in left]
            best = first.pop(0) if first else left[int(np.argmax(self.weights[left] / drop))]
            whole = _set(r, best, 1.0)
            if self.slack(whole) < 0:
                return self._between(r, whole)
            r = whole
        return r

    def _within(self, r: Vector) -> Vector:
        """These ratios, all reduced by one factor if they overspend."""
        return r if self.slack(r) >= 0 else self._between(np.zeros(len(r)), r)

    def _between(self, low: Vector, high: Vector) -> Vector:
        """The last ratios on the way from some that fit to some that do not."""
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self.slack(middle) >= 0 else (low, middle)
        return low

    def _filled(self, units: Vector) -> Vector:
        """Add units while one fits, those of the node worth most for its cost first."""
        while fitting := [k for k in np.flatnonzero(units < self.sizes).tolist() if self.fits(_set(units, k, units[k] + 1))]:
            cost = np.maximum(-self.slope(units / self.sizes)[fitting], 1e-30)
            units = self._extended(units, fitting[int(np.argmax(self.weights[fitting] / cost))])
        return units

    def _extended(self, units: Vector, k: int) -> Vector:
        """As many more units of one node as fit."""
        room = int(self.sizes[k] - units[k])
        return _set(units, k, units[k] + _largest(lambda n: self.fits(_set(units, k, units[k] + n)), room))

    def _exchanged(self, units: Vector, k: int, other: int) -> Vector:
        """Some units of a node given up for as many as fit of another, if that gains something: 1, 2, 4, ... or all."""
        powers = 2 ** np.arange(max(int(units[k]).bit_length(), 1))
        for given in sorted({*powers.tolist(), int(units[k])}) if units[k] else []:
            less = _set(units, k, units[k] - given)
            more = self._extended(less, other)
            if self.gain(more) > self.gain(less) and self.gain(self._filled(more)) > self.gain(units) * (1 + 1e-12):
                return self._filled(more)
        return units


def _set(values: Vector, k: int, value: float) -> Vector:
    changed = values.copy()
    changed[k] = value
    return changed


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, where every smaller one does; 0 always does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
