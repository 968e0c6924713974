"""Spherical averaging of several models in closed form."""

from dataclasses import dataclass

from jaxtyping import Array

from alignment.graph import PyTree
from npmerge.base import LinearMerge, Stats
from npmerge.inner_products import from_angles, on_sphere
from npmerge.stack import Stack
from npmerge.weights import Weights, check_weights, shares_of


@dataclass(frozen=True)
class MultiSlerp(LinearMerge):
    """u * sum_m w_m |params_m|, u the direction of sum_m w_m params_m / |params_m|, for each tensor.

    `multislerp` in mergekit (Goddard 2024), which projects to the tangent space at u, averages there and maps back: the
    average there is zero, so u is the result, and here it is written so. The first step of `KarcherMean`, which it equals for
    two models of equal weight. A tensor of norm zero has no direction, but counts in the mean of the norms. A single number
    is averaged.

    Attributes:
        weights: one number per model, divided by their sum; equal by default.
        task_vectors: merge the differences from the base, which is then needed.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}])
        >>> print(np.array(nm.MultiSlerp()(stack)["w"]).round(3))  # the direction between both, the mean length 2
        [1.414 1.414]
    """

    weights: Weights = None
    task_vectors: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", check_weights(self, self.weights))

    @property
    def needs_base(self) -> bool:  # type: ignore[override]
        """Whether task vectors are merged."""
        return self.task_vectors

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """One coefficient per model and tensor.

        Raises:
            ValueError: tensors whose directions cancel out (mergekit falls back to the average for two models); weights as in
                `WeightedAverage`; no base for task vectors.
        """
        if self.needs_base:
            self.require_base(stack)
        shares = shares_of(self, self.weights, stack)
        return from_angles(
            lambda angles: on_sphere(self, angles, shares, shares * (angles.norms > 0)),
            stack,
            shares,
            needs_base=self.needs_base,
        )
