"""Which nodes to keep separate when the merged network may cost so many times one network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignment.budget.costs import By, Costs
from alignment.budget.knapsack import Knapsack
from alignment.checks import check_count, is_number, kind_of
from alignment.graph import Graph
from alignment.separability import check_separable, held

SMALLEST = 1e-5  # of the largest weight; the published floor of weights that are themselves at most 1


@dataclass(frozen=True)
class Allocation:
    """Ratios for `PartialMatching(ratio=allocation.ratios)`.

    Attributes:
        ratios: the fraction of units kept separate, a whole number of units, for every node that was weighed.
        cost: what the partially merged network costs as a multiple of one network, at most the budget.
        gain: the sum over nodes of weight times ratio.
        held: the nodes that cannot change their width, and why.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> v, x = {"up": jnp.ones((2, 4)), "down": jnp.ones((4, 1))}, jnp.ones((1, 2))
        >>> graph = alignment.trace(apply, v, x)
        >>> allocation = alignment.allocate(alignment.costs(apply, graph, v, x), graph, {"up": 1.0}, budget=1.5)
        >>> allocation
        Allocation(ratios=(('up', 0.5),), cost=1.5, gain=0.5, held=())
        >>> alignment.PartialMatching(ratio=allocation.ratios).widths(graph, models=2)
        {'up': 6}
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
    neighbours that are both separate cost less than the two of them alone. An iterated local search over whole units
    (`alignment.budget.knapsack`) starts from greedy choices that each separate another node first, exchanges units between
    nodes while that gains, and then again with one node made whole or merged. The outcome is deterministic, keeps to the
    budget exactly, leaves no room for another unit, and is the best found, though not proven to be the optimum; a larger
    budget may give one node less for the sake of another, for a larger sum.

    Args:
        costs: what `alignment.budget.costs.costs` returned for the network.
        graph: its graph.
        weights: what it is worth to keep a node separate: `disagreement`, `measured_gains`, or your own. Nodes that are not
            named stay merged; a weight below 1e-5 of the largest counts as that.
        budget: the multiple B of the cost of one network, between 1 and N.
        models: the number N of networks to be merged.
        by: "flops" or "parameters".

    Raises:
        ValueError: a budget below 1 or above N, no weights, a negative or non-finite one, a node that cannot change its width
            or that the graph does not have.

    Example:
        >>> apply = lambda v, x: jnp.maximum(jnp.maximum(x @ v["up"], 0) @ v["mid"], 0) @ v["down"]
        >>> v, x = {"up": jnp.ones((2, 4)), "mid": jnp.ones((4, 4)), "down": jnp.ones((4, 1))}, jnp.ones((1, 2))
        >>> graph = alignment.trace(apply, v, x)
        >>> found = alignment.allocate(alignment.costs(apply, graph, v, x), graph, {"up": 0.2, "mid": 0.9}, budget=1.75)
        >>> dict(found.ratios), round(found.cost, 3)  # the one that is worth more, as far as it goes
        ({'up': 0.0, 'mid': 1.0}, 1.714)
    """
    check_budget(budget, models)
    check_weights(graph, weights)
    fixed = held(graph)
    values = {name: float(weights[name]) for name in graph.nodes if name in weights and name not in fixed}
    largest = max(values.values()) or 1.0
    chosen = _ratios(costs, {name: max(value / largest, SMALLEST) for name, value in values.items()}, budget, models, by)
    gain = float(sum(values[name] * ratio for name, ratio in chosen.items()))
    return Allocation(tuple(chosen.items()), costs.multiple(chosen, models=models, by=by), gain, tuple(fixed.items()))


def _ratios(costs: Costs, worth: Mapping[str, float], budget: float, models: int, by: By) -> dict[str, float]:
    """The ratios of the nodes that are worth something; all others stay merged."""
    every, widths = costs.polynomial(by), dict(costs.sizes)
    sizes = [widths[name] for name in worth]
    cost = every.at({name: size for name, size in widths.items() if name not in worth}).compiled(list(worth))
    needed = every(widths) * (models - budget) / (models - 1)
    units = Knapsack(cost, sizes, np.array(list(worth.values())) / sizes, needed).best()
    return dict(zip(worth, (units / sizes).tolist(), strict=True))


def check_budget(budget: Any, models: Any) -> None:
    """Raise ValueError for a budget that is not a number between 1 and the number of models."""
    check_count("models", models, 2)
    if not is_number(budget) or not 1 <= budget <= models:
        got = budget if is_number(budget) else f"{budget!r} ({kind_of(budget)})"
        raise ValueError(f"a budget is between 1 and the number of models, {models}: got {got}")


def check_weights(graph: Graph, weights: Any) -> None:
    """Raise ValueError for weights that are not numbers of 0 or more by node, for one or more nodes that can be separated."""
    expected = "weights must be finite and not negative, for at least one node that can change"
    if not isinstance(weights, Mapping):
        raise ValueError(f"{expected}, as a mapping from their names: got {kind_of(weights)}")
    for name, value in weights.items():
        if not is_number(value) or not 0 <= value < np.inf:
            raise ValueError(f"{expected}: got {value!r} for {name!r}")
    check_separable(graph, weights)
    if not weights.keys() - held(graph).keys():
        raise ValueError(f"{expected}: got {dict(weights)}")
