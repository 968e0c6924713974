"""PLeaS: partial matching within a budget, then least squares; networks of any size between one and all."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
from jaxtyping import Array

from alignment.allocation import Allocation, allocate, check_budget
from alignment.base import Alignment, PermutationAlignment, Stats, check_finite
from alignment.checks import check_list, kind_of
from alignment.costs import By, Costs, costs
from alignment.gains import disagreement
from alignment.graph import Graph, PyTree
from alignment.maps import transport
from alignment.partial import PartialMatching
from alignment.resizing import resize
from alignment.weight_matching import WeightMatching
from npmerge.least_squares import LeastSquares, Solved
from npmerge.methods.average import Average
from npmerge.normalisation import TrainApply, reset_statistics
from npmerge.stack import stack_models


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
        """Merge at a budget.

        Args:
            apply: the network in evaluation mode.
            graph: its graph.
            models: the variables of N networks.
            budget: the size of the merged network between 1 and N, in operations or parameters of one.
            inputs: an example, or its shape: operations are counted for it.
            weights: what it is worth to keep each node apart; by default how much its units disagree (`disagreement`).
            stats: what the matching needs.
            batches: `(inputs, targets)` for the least squares and the statistics; targets are not read.
            train_apply: the network in training mode, if it has running statistics: they are re-estimated from the batches,
                with `sequential` least squares also in between. Without, they are averages.
            key: randomness of the matching.

        Raises:
            ValueError: a budget below 1 or above N, and as the matching, `allocate`, the least squares and
                `reset_statistics` do.
        """
        check_list(models, "models")
        check_budget(budget, len(models))
        for k, model in enumerate(models):
            graph.check(model)
            check_finite(model, f"model {k}")
        worth = disagreement(self.matching, graph, models, stats=stats, key=key) if weights is None else weights
        cost: Costs = costs(apply, graph, models[0], inputs)
        chosen = allocate(cost, graph, worth, budget, models=len(models), by=self.by)
        alignment = PartialMatching(self.matching, chosen.ratios)
        maps = alignment.maps(alignment.init(graph, models, stats=stats, key=key), graph)
        widths = alignment.widths(graph, len(models))
        solved = None
        if self.least_squares is None:
            merged = Average()(stack_models([transport(graph, m, model) for m, model in zip(maps, models, strict=True)]))
            if train_apply is not None:
                merged = reset_statistics(resize(train_apply, graph, merged, widths), merged, batches)
        else:
            solved = self.least_squares(apply, graph, models, maps, batches, train_apply=train_apply)
            merged = solved.variables
        return Sized(merged, widths, chosen, cost.flops(widths) / cost.flops(), solved)
