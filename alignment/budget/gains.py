"""What it is worth to keep a node's units separate: without data, from activations, or measured."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Array

from alignment.base import Alignment, Stats
from alignment.budget.allocation import SMALLEST, check_budget
from alignment.graph import Graph, PyTree
from alignment.methods.partial import Matched, matched
from alignment.separability import check_separable, separable


def disagreement(
    matching: Alignment, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None
) -> dict[str, float]:
    """One minus the mean agreement of matched units, for every node that can be separated: weights for `allocate`.

    Agreement is the correlation of activations for a matching by activations, else the cosine of weights (`unit_agreement`).
    Zero for identical networks, one for units that have nothing to do with each other; never negative.

    Args:
        matching: an alignment by permutations.
        graph: the graph of the networks.
        models: their variables.
        stats: what `matching.needs`.
        key: randomness of the matching.

    Raises:
        ValueError: as the matching does.

    Example:
        >>> apply = lambda v, x: jnp.maximum(jnp.maximum(x @ v["up"], 0) @ v["mid"], 0) @ v["down"]
        >>> a = {"up": 3 * jnp.eye(2), "mid": jnp.eye(2), "down": jnp.ones((2, 1))}
        >>> b = {"up": 3 * jnp.eye(2), "mid": jnp.array([[1.0, 2.0], [-2.0, 1.0]]), "down": jnp.ones((2, 1))}
        >>> graph = alignment.trace(apply, a, jnp.ones((1, 2)))
        >>> found = alignment.disagreement(alignment.WeightMatching(), graph, [a, b])
        >>> {node: round(value, 2) for node, value in found.items()}  # the second layers differ
        {'up': 0.15, 'mid': 0.42}
    """
    return disagreement_of(matched(matching, graph, models, stats=stats, key=key), graph)


def disagreement_of(found: Matched, graph: Graph) -> dict[str, float]:
    """`disagreement` of models that are matched already."""
    return {name: max(0.0, 1 - float(np.mean(found.agreement[name]))) for name in separable(graph)}


def measured_gains(
    evaluate: Callable[[Mapping[str, float]], float],
    graph: Graph,
    budget: float,
    *,
    models: int = 2,
    nodes: Iterable[str] | None = None,
) -> dict[str, float]:
    """What each node is worth by evaluation: the gain if it alone is separate and the loss if it alone is merged, blended.

    As in the code of PLeaS (Nasery et al. 2024), for N models of budget B between 1 and N:

        w_g = max(1e-5, (R1_g - R1) (N - B) / (N - 1) - (R0_g - R0) (B - 1) / (N - 1))

    R1 is the accuracy with everything merged and R1_g with only g separate, R0 with everything separate and R0_g with only g
    merged: near B = 1 networks are mostly merged, near B = N mostly separate. For N = 2 the factors are 2 - B and B - 1, as
    published. Costs 2 + 2 evaluations a node, less those whose factor is zero.

    Args:
        evaluate: from the ratios of all nodes that can be separated to the accuracy (larger is better) of the network that
            `PartialMatching(ratio=ratios)` makes of them.
        graph: the graph of the networks.
        budget: the budget that the weights are for.
        models: the number of networks.
        nodes: those to measure; by default all that can be separated. The others stay as most are.

    Raises:
        ValueError: a budget out of range, a node that cannot be separated.

    Example:
        >>> apply = lambda v, x: jnp.maximum(jnp.maximum(x @ v["up"], 0) @ v["mid"], 0) @ v["down"]
        >>> v = {"up": jnp.ones((2, 4)), "mid": jnp.ones((4, 4)), "down": jnp.ones((4, 1))}
        >>> graph = alignment.trace(apply, v, jnp.ones((1, 2)))
        >>> accuracy = lambda ratios: 0.5 + 0.1 * ratios["up"] + 0.3 * ratios["mid"]  # of a merged network, in earnest
        >>> {node: round(gain, 3) for node, gain in alignment.measured_gains(accuracy, graph, budget=1.5).items()}
        {'up': 0.1, 'mid': 0.3}
    """
    check_budget(budget, models)
    names = tuple(separable(graph) if nodes is None else nodes)
    check_separable(graph, dict.fromkeys(names, 1.0))
    separate, merge = (models - budget) / (models - 1), (budget - 1) / (models - 1)

    def evaluated(ratios: Mapping[str, float]) -> float:
        if not np.isfinite(value := evaluate(ratios)):
            raise ValueError(f"an evaluation must be a finite number, got {value} for the ratios {dict(ratios)}")
        return float(value)

    def differences(base: float, other: float) -> dict[str, float]:
        rest = dict.fromkeys(separable(graph), base)
        before = evaluated(rest)
        return {name: evaluated({**rest, name: other}) - before for name in names}

    zero = dict.fromkeys(names, 0.0)
    gained = differences(0.0, 1.0) if separate else zero
    lost = differences(1.0, 0.0) if merge else zero
    return {name: max(SMALLEST, gained[name] * separate - lost[name] * merge) for name in names}
