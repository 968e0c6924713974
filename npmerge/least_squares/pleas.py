"""PLeaS: partial matching within a budget, then least squares; networks of any size between one and all."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from alignment.base import Alignment, PermutationAlignment, Stats
from alignment.budget.allocation import Allocation, allocate, check_budget, check_weights
from alignment.budget.costs import By, Costs, headed_costs
from alignment.budget.gains import disagreement_of
from alignment.checks import check_count, check_list, kind_of
from alignment.finite import check_finite
from alignment.graph import Graph, PyTree
from alignment.maps import Maps, transport
from alignment.methods.partial import Matched, PartialMatching, matched
from alignment.methods.weight_matching import WeightMatching
from alignment.own_leaves import own_leaves, without
from alignment.per_model import functions_of, graphs_of, of_one_width
from alignment.resizing.resize import resize
from npmerge.arithmetic import mean_of
from npmerge.batches import measured
from npmerge.heads.multi_head import Headed, multi_head
from npmerge.least_squares.solve import LeastSquares, Solved
from npmerge.normalisation import TrainApply, reset_statistics


class Sized(NamedTuple):
    """What `Pleas` returns.

    Attributes:
        variables: of the merged network, for `resize(apply, graph, variables, widths)` to run, or `headed.apply`.
        widths: the new width of every node.
        allocation: the ratios kept separate, what they cost and which nodes cannot change their width.
        dense: operations of the network as it runs, with the blocks that are zero, as a multiple of one network's.
        solved: what the least squares found, None without them.
        headed: the merged network with a head for each model, where they keep their own; else None.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> a = {"w": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "u": jnp.eye(2)}
        >>> b = {"w": jnp.array([[1.0, 0.0], [0.0, -1.0]]), "u": jnp.eye(2)}
        >>> graph = nm.trace(apply, a, jnp.eye(2))
        >>> found = nm.Pleas()(apply, graph, [a, b], 1.5, inputs=jnp.eye(2))
        >>> found.widths, found.dense, {path: x.shape for path, x in found.variables.items()}
        ({'w': 3}, 1.5, {'u': (3, 2), 'w': (2, 3)})
    """

    variables: PyTree
    widths: dict[str, int]
    allocation: Allocation
    dense: float
    solved: Solved | None
    headed: Headed | None


@dataclass(frozen=True, eq=False)
class PreparedPleas:
    """What `Pleas.prepare` returns: all that does not depend on the budget, for as many budgets as are wanted.

    Attributes:
        pleas: how it was asked for.
        functions: of each network in evaluation mode.
        graphs: of each.
        models: the variables of N networks.
        own: the leaves that each keeps to itself, by path: their heads, none where they are merged.
        matched: their units, each with its partners.
        costs: what one network costs by its widths, with the heads of all.
        weights: what it is worth to keep each node apart.
        batches: for the least squares and the statistics.
        train_applies: of each network in training mode, None where statistics are not re-estimated.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> a = {"w": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "u": jnp.eye(2)}
        >>> b = {"w": jnp.array([[1.0, 0.0], [0.0, -1.0]]), "u": jnp.eye(2)}
        >>> graph = nm.trace(apply, a, jnp.eye(2))
        >>> ready = nm.Pleas().prepare(apply, graph, [a, b], inputs=jnp.eye(2))  # matched once
        >>> [ready.at(budget).widths["w"] for budget in (1.0, 1.5, 2.0)]
        [2, 3, 4]
    """

    pleas: "Pleas"
    functions: tuple[Callable[..., PyTree], ...]
    graphs: tuple[Graph, ...]
    models: Sequence[PyTree]
    own: tuple[str, ...]
    matched: Matched
    costs: Costs
    weights: Mapping[str, float]
    batches: Sequence[tuple]
    train_applies: tuple[TrainApply, ...] | None

    def at(self, budget: float, *, progress: Callable[[int, int], Any] | None = None) -> Sized:
        """The merged network of a size between 1 and N.

        Args:
            budget: the size.
            progress: of the least squares, if there are any: called with how many layers are solved, and of how many.

        Raises:
            ValueError: another size, and as the least squares and `reset_statistics` do.
        """
        graph, networks = self.graphs[0], (self.functions, self.graphs, self.models)
        chosen = allocate(self.costs, graph, self.weights, budget, models=len(self.models), by=self.pleas.by)
        partial = PartialMatching(self.pleas.matching, chosen.ratios)
        maps, widths = self.matched.maps(partial.merged(graph)), partial.widths(graph, len(self.models))
        solved = headed = None
        if (fit := self.pleas.least_squares) is not None:
            given: dict[str, Any] = {"train_apply": self.train_applies, "heads": self.pleas.heads, "progress": progress}
            solved = fit(*networks, maps, self.batches, **given)
            merged, headed = solved.variables, solved.headed
        elif self.own:
            headed = multi_head(*networks, maps, train_apply=self.train_applies).renewed(self.batches)
            merged = headed.variables
        else:
            merged = self._average(maps, widths)
        return Sized(merged, widths, chosen, self.costs.flops(widths) / self.costs.flops(), solved, headed)

    def _average(self, maps: Sequence[Maps], widths: Mapping[str, int]) -> PyTree:
        """The plain average of the transported networks, with statistics of its own."""
        moved = [transport(g, m, model) for g, m, model in zip(self.graphs, maps, self.models, strict=True)]
        merged = mean_of(moved)
        if self.train_applies is None:
            return merged
        return reset_statistics(resize(self.train_applies[0], self.graphs[0], merged, widths), merged, self.batches)


@dataclass(frozen=True)
class Pleas:
    """Keep apart the units that agree least as far as a budget reaches, merge the others, and solve the layers anew if wanted.

    Nasery et al. 2024, "PLeaS: Merging Models with Permutations and Least Squares" (arXiv 2407.02447), for N models: at budget
    1 all units are merged (the average of the permuted networks, where there are no least squares), at budget N every node is
    separate that can be: without nodes that are held (`allocation.held`) that is the mean of the networks' outputs. A layer of
    one unit is no node, and is merged at any budget.

    Networks with different numbers of outputs are matched by what they have in common and keep their heads (`multi_head`): at
    budget N each gives its own outputs. The budget then counts in multiples of one network with the heads of all.

    Attributes:
        matching: an alignment by permutations; `WeightMatching` needs no data.
        least_squares: how the layers are solved, from `batches`; None, without data, leaves them as the matching makes them.
        by: whether the budget is of operations or of parameters.
        heads: whether networks with equal outputs keep their heads, too: for tasks of their own.

    Raises:
        ValueError: a matching that is not by permutations, arguments of other kinds.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> a = {"w": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "u": jnp.eye(2)}
        >>> b = {"w": jnp.array([[1.0, 0.0], [0.0, -1.0]]), "u": jnp.eye(2)}  # its second unit is another feature
        >>> graph, x = nm.trace(apply, a, jnp.eye(2)), jnp.array([[1.0, 1.0], [1.0, -1.0]])
        >>> for budget in (1.0, 1.5, 2.0):
        ...     found = nm.Pleas()(apply, graph, [a, b], budget, inputs=x)
        ...     print(found.widths, nm.resize(apply, graph, found.variables)(found.variables, x)[:, 1])
        {'w': 2} [0. 0.]
        {'w': 3} [0.5 0.5]
        {'w': 4} [0.5 0.5]
    """

    matching: Alignment = field(default_factory=WeightMatching)
    least_squares: LeastSquares | None = None
    by: By = "flops"
    heads: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.matching, PermutationAlignment):
            raise ValueError(f"Pleas takes an alignment by permutations, got {kind_of(self.matching)}")
        if not isinstance(self.least_squares, LeastSquares | None):
            raise ValueError(f"least_squares must be LeastSquares(...) or None, got {kind_of(self.least_squares)}")
        if self.by not in ("flops", "parameters"):
            raise ValueError(f"a budget is by 'flops' or 'parameters', got {self.by!r}")
        if not isinstance(self.heads, bool):
            raise ValueError(f"heads must be True or False, got {self.heads!r}")

    def __call__(
        self,
        apply: Callable[..., PyTree] | Sequence[Callable[..., PyTree]],
        graph: Graph | Sequence[Graph],
        models: Sequence[PyTree],
        budget: float,
        **given: Any,
    ) -> Sized:
        """Merge at a budget: `prepare(apply, graph, models, **given).at(budget)`. Raises ValueError as they do."""
        check_list(models, "models")
        check_budget(budget, len(models))  # before the matching, which takes its time
        return self.prepare(apply, graph, models, **given).at(budget)

    def prepare(
        self,
        apply: Callable[..., PyTree] | Sequence[Callable[..., PyTree]],
        graph: Graph | Sequence[Graph],
        models: Sequence[PyTree],
        *,
        inputs: Array | jax.ShapeDtypeStruct,
        weights: Mapping[str, float] | None = None,
        stats: Stats | None = None,
        batches: Iterable[tuple] = (),
        train_apply: TrainApply | Sequence[TrainApply] | None = None,
        key: Array | None = None,
    ) -> PreparedPleas:
        """Match the networks and count what they cost, once for any number of budgets: `prepare(...).at(budget)`.

        Args:
            apply: the network in evaluation mode; one for each model where they have different numbers of outputs.
            graph: its graph, likewise.
            models: the variables of N networks. Leaves that are not floating-point are taken from the first.
            inputs: an example, or its shape: operations are counted for it.
            weights: what it is worth to keep each node apart; by default how much its units disagree (`disagreement`).
            stats: what the matching needs.
            batches: `(inputs, targets)` for the least squares and the statistics; targets are not read.
            train_apply: the network in training mode, likewise, if it has running statistics: they are re-estimated from the
                batches, with `sequential` least squares also in between. Without, they are averages.
            key: randomness of the matching.

        Raises:
            ValueError: fewer than two networks, another number of functions or graphs, networks that differ in more than their
                outputs, variables that do not fit the graph or are not finite, weights that `allocate` would refuse, and as the
                matching does.
        """
        check_list(models, "models")
        check_count("the number of models", len(models), 2)
        functions, graphs = functions_of(apply, models), graphs_of(graph, models)
        train_applies = None if train_apply is None else functions_of(train_apply, models)
        for k, (each, model) in enumerate(zip(graphs, models, strict=True)):
            each.check(model)
            check_finite(model, f"model {k}")
        first = of_one_width(self, graphs, models)
        if weights is not None:
            check_weights(first, weights)
        own = own_leaves(first, models, heads=self.heads)
        counted = len(models) if own else 1
        cost = headed_costs(functions[:counted], graphs[:counted], models[:counted], own, inputs)
        found = matched(self.matching, first, without(models, own), stats=stats, key=key)
        worth = disagreement_of(found, first) if weights is None else dict(weights)
        data = list(measured(batches))
        return PreparedPleas(self, functions, graphs, models, own, found, cost, worth, data, train_applies)
