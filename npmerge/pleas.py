"""PLeaS: partial matching within a budget, then least squares; networks of any size between one and all."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
from jaxtyping import Array

from alignment.allocation import Allocation, allocate, check_budget, check_weights
from alignment.base import Alignment, PermutationAlignment, Stats, check_finite
from alignment.checks import check_count, check_list, kind_of
from alignment.costs import By, Costs, costs
from alignment.gains import disagreement_of
from alignment.graph import Graph, PyTree
from alignment.maps import transport
from alignment.partial import Matched, PartialMatching, matched
from alignment.resizing import resize
from alignment.weight_matching import WeightMatching
from npmerge.batches import measured
from npmerge.least_squares import LeastSquares, Solved
from npmerge.normalisation import TrainApply, reset_statistics
from npmerge.stack import mean_of


class Sized(NamedTuple):
    """What `Pleas` returns.

    Attributes:
        variables: of the merged network, for `resize(apply, graph, variables, widths)` to run.
        widths: the new width of every node.
        allocation: the ratios kept separate, what they cost and which nodes cannot change their width.
        dense: operations of the network as it runs, with the blocks that are zero, as a multiple of one network's.
        solved: what the least squares found, None without them.
    """

    variables: PyTree
    widths: dict[str, int]
    allocation: Allocation
    dense: float
    solved: Solved | None


@dataclass(frozen=True, eq=False)
class PreparedPleas:
    """What `Pleas.prepare` returns: all that does not depend on the budget, for as many budgets as are wanted.

    Attributes:
        pleas: how it was asked for.
        apply: the network in evaluation mode.
        graph: its graph.
        models: the variables of N networks.
        matched: their units, each with its partners.
        costs: what one network costs by its widths.
        weights: what it is worth to keep each node apart.
        batches: for the least squares and the statistics.
        train_apply: the network in training mode, None where statistics are not re-estimated.
    """

    pleas: "Pleas"
    apply: Callable[..., PyTree]
    graph: Graph
    models: Sequence[PyTree]
    matched: Matched
    costs: Costs
    weights: Mapping[str, float]
    batches: Sequence[tuple]
    train_apply: TrainApply | None

    def at(self, budget: float) -> Sized:
        """The merged network of a size between 1 and N.

        Raises:
            ValueError: another size, and as the least squares and `reset_statistics` do.
        """
        chosen = allocate(self.costs, self.graph, self.weights, budget, models=len(self.models), by=self.pleas.by)
        partial = PartialMatching(self.pleas.matching, chosen.ratios)
        maps, widths = self.matched.maps(partial.merged(self.graph)), partial.widths(self.graph, len(self.models))
        solved = None
        if self.pleas.least_squares is None:
            merged = mean_of([transport(self.graph, m, model) for m, model in zip(maps, self.models, strict=True)])
            if self.train_apply is not None:
                train_apply = resize(self.train_apply, self.graph, merged, widths)
                merged = reset_statistics(train_apply, merged, self.batches)
        else:
            fit, data = self.pleas.least_squares, self.batches
            solved = fit(self.apply, self.graph, self.models, maps, data, train_apply=self.train_apply)
            merged = solved.variables
        return Sized(merged, widths, chosen, self.costs.flops(widths) / self.costs.flops(), solved)


@dataclass(frozen=True)
class Pleas:
    """Keep apart the units that agree least as far as a budget reaches, merge the others, and solve the layers anew if wanted.

    Nasery et al. 2024, "PLeaS: Merging Models with Permutations and Least Squares" (arXiv 2407.02447), for N models: at budget
    1 all units are merged (the average of the permuted networks, where there are no least squares), at budget N every node is
    separate that can be: without nodes that are held (`allocation.held`) that is the mean of the networks' outputs.

    Attributes:
        matching: an alignment by permutations; `WeightMatching` needs no data.
        least_squares: how the layers are solved, from `batches`; None, without data, leaves them as the matching makes them.
        by: whether the budget is of operations or of parameters.
    """

    matching: Alignment = field(default_factory=WeightMatching)
    least_squares: LeastSquares | None = None
    by: By = "flops"

    def __post_init__(self) -> None:
        if not isinstance(self.matching, PermutationAlignment):
            raise ValueError(f"Pleas takes an alignment by permutations, got {kind_of(self.matching)}")
        if not isinstance(self.least_squares, LeastSquares | None):
            raise ValueError(f"least_squares must be LeastSquares(...) or None, got {kind_of(self.least_squares)}")
        if self.by not in ("flops", "parameters"):
            raise ValueError(f"a budget is by 'flops' or 'parameters', got {self.by!r}")

    def __call__(
        self,
        apply: Callable[..., PyTree],
        graph: Graph,
        models: Sequence[PyTree],
        budget: float,
        *,
        inputs: Array | jax.ShapeDtypeStruct,
        weights: Mapping[str, float] | None = None,
        stats: Stats | None = None,
        batches: Iterable[tuple] = (),
        train_apply: TrainApply | None = None,
        key: Array | None = None,
    ) -> Sized:
        """Merge at a budget: `prepare(...).at(budget)`, which takes the same arguments. Raises ValueError as they do."""
        check_list(models, "models")
        check_budget(budget, len(models))  # before the matching, which takes its time
        ready = self.prepare(
            apply, graph, models, inputs=inputs, weights=weights, stats=stats, batches=batches, train_apply=train_apply, key=key
        )
        return ready.at(budget)

    def prepare(
        self,
        apply: Callable[..., PyTree],
        graph: Graph,
        models: Sequence[PyTree],
        *,
        inputs: Array | jax.ShapeDtypeStruct,
        weights: Mapping[str, float] | None = None,
        stats: Stats | None = None,
        batches: Iterable[tuple] = (),
        train_apply: TrainApply | None = None,
        key: Array | None = None,
    ) -> PreparedPleas:
        """Match the networks and count what they cost, once for any number of budgets: `prepare(...).at(budget)`.

        Args:
            apply: the network in evaluation mode.
            graph: its graph.
            models: the variables of N networks. Leaves that are not floating-point are taken from the first.
            inputs: an example, or its shape: operations are counted for it.
            weights: what it is worth to keep each node apart; by default how much its units disagree (`disagreement`).
            stats: what the matching needs.
            batches: `(inputs, targets)` for the least squares and the statistics; targets are not read.
            train_apply: the network in training mode, if it has running statistics: they are re-estimated from the batches,
                with `sequential` least squares also in between. Without, they are averages.
            key: randomness of the matching.

        Raises:
            ValueError: fewer than two networks, variables that do not fit the graph or are not finite, weights that `allocate`
                would refuse, and as the matching does.
        """
        check_list(models, "models")
        check_count("the number of models", len(models), 2)
        for k, model in enumerate(models):
            graph.check(model)
            check_finite(model, f"model {k}")
        if weights is not None:
            check_weights(graph, weights)
        cost = costs(apply, graph, models[0], inputs)
        found = matched(self.matching, graph, models, stats=stats, key=key)
        worth = disagreement_of(found, graph) if weights is None else dict(weights)
        return PreparedPleas(self, apply, graph, models, found, cost, worth, list(measured(batches)), train_apply)
