"""Matching models in their task parameter subspaces."""

from dataclasses import dataclass, field
from typing import Literal

import jax
from jaxtyping import Array

from alignment.checks import check_choice, check_count, check_fraction, check_kinds
from alignment.graph import PyTree
from npmerge.arithmetic import wide
from npmerge.base import Merge, Stats
from npmerge.hyper import searched
from npmerge.methods.average import Average
from npmerge.quadratics.collected_operators import NEEDS, operators_of
from npmerge.quadratics.minimum import Residuals, Rule, minimised
from npmerge.stack import Stack


@dataclass(frozen=True)
class MaTS(Merge):
    """The p with sum_m C_m p = sum_m C_m p_m for each tensor, by conjugate gradients that stop early (Tam et al. 2023).

    Stopping early is part of the method: directions in which all C_m are small or zero stay as at the start. Converged,
    "identity" is the average, "diagonal" Fisher merging, "gram" RegMean without scale and ridge. Each matrix of a site is
    a system of its own; other tensors are averaged. Published: no preconditioning, from 0.3 task arithmetic, empirical Fisher.

    Attributes:
        operator: C_m: "diagonal" of the Fisher information, "gram" W -> G_m W, embeddings too, or "kronecker" W -> A_m W B_m,
            G_m = A_m of the inputs and B_m of the gradients, W (rows, columns).
        iterations: the most; 0 is the start. Published 100 for whole models.
        start: the merge to start from: `TaskArithmetic(scale)`, of scale 0 for the base.
        tolerance: of |sum_m C_m (p_m - p)| relative to |sum_m C_m p_m|, from which on a system stays as it is.
        preconditioned: divide by the diagonal of sum_m C_m, so that entries count alike whatever their scale.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([5.0, 5.0])}])
        >>> stats = {nm.DiagonalFisher: {"w": jnp.array([[3.0, 0.0], [1.0, 2.0]])}}  # `collect` measures it
        >>> for n in (0, 1, 2):  # from the average to Fisher merging
        ...     merge = nm.MaTS("diagonal", iterations=n, preconditioned=False)
        ...     print(np.array(merge(stack, stats=stats)["w"]).round(3))
        [3. 3.]
        [1.667 4.333]
        [2. 5.]
    """

    operator: Literal["identity", "diagonal", "gram", "kronecker"] = "kronecker"
    iterations: int = searched(10, range(10, 101, 10))
    start: Merge = field(default=Average())
    tolerance: float = 1e-5
    preconditioned: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("operator", self.operator, tuple(NEEDS))
        check_count("iterations", self.iterations, 0)
        check_kinds("MaTS takes a merge as its start", (self.start, Merge))
        check_fraction("tolerance", self.tolerance)

    @property
    def needs(self) -> tuple[type, ...]:  # type: ignore[override]
        """What the operator and the start need."""
        return tuple(dict.fromkeys((*NEEDS[self.operator], *self.start.needs)))

    @property
    def needs_base(self) -> bool:  # type: ignore[override]
        """Whether the start does."""
        return self.start.needs_base

    @property
    def random(self) -> bool:
        """Whether the start draws."""
        return self.start.random

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> dict[str, PyTree]:
        """Theta of the start, and the operator of each tensor. Raises ValueError without what they need."""
        operators = operators_of(self.operator, self, stack, stats)
        return {"operators": operators, "start": self.start.init(stack, stats=stats, key=key)}

    def apply(self, theta: dict[str, PyTree], stack: Stack) -> PyTree:
        """The merged model, in float32 or wider and rounded once."""
        return jax.tree.map(lambda p, x: p.astype(x.dtype), self._solved(theta, stack)[0], stack.params)

    def residuals(self, theta: dict[str, PyTree], stack: Stack) -> dict[str, Residuals]:
        """What is left at the start and after each iteration, of each site, or each tensor of a diagonal."""
        return self._solved(theta, stack)[1]

    def _solved(self, theta: dict[str, PyTree], stack: Stack) -> tuple[PyTree, dict[str, Residuals]]:
        models, rule = jax.tree.map(wide, stack), Rule(self.iterations, self.tolerance, self.preconditioned)
        return minimised(theta["operators"], models.params, self.start.apply(theta["start"], models), rule)
