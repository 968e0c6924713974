"""Matching models in their task parameter subspaces."""

from dataclasses import dataclass
from typing import Literal

import jax
from jaxtyping import Array

from alignment.checks import check_choice, check_count, check_kinds, check_number
from alignment.graph import PyTree
from npmerge.base import Merge, Stats, wide
from npmerge.conjugate_gradients import Residuals, Rule, minimised
from npmerge.fisher_information import DiagonalFisher, information_of
from npmerge.grams import InputGram, grams_of
from npmerge.methods.average import Average
from npmerge.quadratic import Diagonal, Identity, on_leaves
from npmerge.stack import Stack

OPERATORS: dict[str, tuple[type, ...]] = {"identity": (), "diagonal": (DiagonalFisher,), "gram": (InputGram,)}
AVERAGE = Average()


@dataclass(frozen=True)
class MaTS(Merge):
    """The p with sum_m C_m p = sum_m C_m p_m for each tensor, by conjugate gradients that stop early (Tam et al. 2023).

    Stopping early is part of the method: directions in which all C_m are small stay as they are at the start. Converged,
    "identity" is the average, "diagonal" is Fisher merging, and directions that no C_m has stay at the start. Each tensor is a
    system of its own. Running statistics are averaged.

    The published program does not precondition, stops after 100 iterations for whole models, searched in 10, 20, ..., 100, and
    starts from task arithmetic with 0.3.

    Attributes:
        operator: C_m: "identity", or "diagonal", for which it needs `DiagonalFisher`.
        iterations: the most; 0 is the start.
        start: the merge to start from: `TaskArithmetic(scale)`, of scale 0 for the base.
        tolerance: of |sum_m C_m (p_m - p)| relative to |sum_m C_m p_m|, from which on a system stays as it is.
        preconditioned: divide by the diagonal of sum_m C_m, so that directions count alike whatever their scale.
    """

    operator: Literal["identity", "diagonal", "gram"] = "diagonal"
    iterations: int = 10
    start: Merge = AVERAGE
    tolerance: float = 1e-5
    preconditioned: bool = True

    def __post_init__(self) -> None:
        check_choice("operator", self.operator, tuple(OPERATORS))
        check_count("iterations", self.iterations, 0)
        check_kinds("MaTS takes a merge as its start", (self.start, Merge))
        check_number("tolerance", self.tolerance)

    @property
    def needs(self) -> tuple[type, ...]:  # type: ignore[override]
        """What the operator and the start need."""
        return tuple(dict.fromkeys((*OPERATORS[self.operator], *self.start.needs)))

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> dict[str, PyTree]:
        """Theta of the start, and the operator of each tensor. Raises ValueError without what they need."""
        operators = self._operators(stack, stats)
        return {"operators": operators, "start": self.start.init(stack, stats=stats, key=key)}

    def apply(self, theta: dict[str, PyTree], stack: Stack) -> PyTree:
        """The merged model, in float32 or wider and rounded once."""
        return jax.tree.map(lambda p, x: p.astype(x.dtype), self._solved(theta, stack)[0], stack.params)

    def residuals(self, theta: dict[str, PyTree], stack: Stack) -> dict[str, Residuals]:
        """What is left at the start and after each iteration, of each site, or each tensor of a diagonal."""
        return self._solved(theta, stack)[1]

    def _solved(self, theta: dict[str, PyTree], stack: Stack) -> tuple[PyTree, dict[str, Residuals]]:
        models = jax.tree.map(wide, stack)
        start = self.start.apply(theta["start"], models)
        return minimised(theta["operators"], models.params, start, Rule(self.iterations, self.tolerance, self.preconditioned))

    def _operators(self, stack: Stack, stats: Stats | None) -> PyTree:
        if self.operator == "diagonal":
            return jax.tree.map(Diagonal, information_of(self, stack, stats))
        if self.operator == "gram":
            return on_leaves(stack.params, ((g.site, g.gram) for g in grams_of(self, stack, stats)))
        return jax.tree.map(lambda _: Identity(), stack.params)
