"""Learned merges: any linear merge as a start, its coefficients as the parameters."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alignment.checks import check_kinds, kind_of
from alignment.graph import PyTree
from npmerge.base import LinearMerge, Merge, Stats, combine
from npmerge.constraints import Constraint
from npmerge.granularity import Granularity
from npmerge.stack import Stack


@dataclass(frozen=True)
class Learned(Merge):
    """Coefficients that start at a closed form and are learned from there.

    `Learned(Average(), PerParameter(), Simplex())` is NP Merge (Orozco Camacho et al. 2024), `Learned(TaskArithmetic(0.3),
    PerTensor(), Free())` is layer-wise AdaMerging (Yang et al. 2024). Zero steps of learning reproduce the start.

    Attributes:
        start: the closed form to start from.
        granularity: which parameters share a coefficient.
        constraint: where coefficients may live.
    """

    start: LinearMerge
    granularity: Granularity
    constraint: Constraint

    def __post_init__(self) -> None:
        if not isinstance(self.start, LinearMerge):
            raise ValueError(f"Learned starts from a linear merge (one with coefficients), got {kind_of(self.start)}")
        call = "Learned takes (start, granularity, constraint)"
        check_kinds(call, (self.start, LinearMerge), (self.granularity, Granularity), (self.constraint, Constraint))

    @property
    def needs(self) -> tuple[type, ...]:  # type: ignore[override]
        """What the start needs."""
        return self.start.needs

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> dict[str, Array]:
        """Latents by group, (rows, ...): those whose coefficients are the start's.

        Raises:
            ValueError: if the granularity or the constraint cannot represent the start.
        """
        coefficients = self.start.init(stack, stats=stats, key=key)
        groups = self.granularity.reduce(coefficients, stack.params)
        for c in groups.values():
            self.constraint.check(c)
        return _latents(self.constraint, tuple(self.granularity.shapes(stack.params).items()), groups)

    def coefficients(self, theta: dict[str, Array], stack: Stack) -> PyTree:
        """The coefficients that theta stands for, one array per leaf that broadcasts against (models, ...)."""
        return self.granularity.expand({name: self.constraint.forward(x) for name, x in theta.items()}, stack.params)

    def apply(self, theta: dict[str, Array], stack: Stack) -> PyTree:
        """`combine` with the coefficients of theta."""
        return combine(self.coefficients(theta, stack), stack if self.start.needs_base else Stack(stack.params))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _latents(constraint: Constraint, shapes: tuple, groups: dict[str, Array]) -> dict[str, Array]:
    """The inverse on the compact coefficients, then one latent for each of their places."""
    compact = {name: constraint.inverse(c) for name, c in groups.items()}
    return {name: jnp.broadcast_to(compact[name], (compact[name].shape[0], *shape)) for name, shape in shapes}
