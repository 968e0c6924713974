"""Model Breadcrumbs."""

from dataclasses import dataclass

from npmerge.task_vectors.composed import Composed
from npmerge.task_vectors.transforms import Transform, Trim
from npmerge.weights import Density, Weights


@dataclass(frozen=True)
class Breadcrumbs(Composed):
    """base + scale * sum_m of the task vectors without their largest and smallest entries (Davari and Belilovsky 2024).

    Masks are of each tensor. With gamma 0 and density 1 this is task arithmetic. Needs a base.

    Where implementations disagree: the paper states the fractions that are cut on either side, here as in merge toolkits the
    upper one and what is kept. Tensors with fewer than 1 / (2 gamma) entries have no outliers; some drop these tensors whole.

    Attributes:
        density: the fraction of entries that is kept, one number or one per model.
        gamma: the fraction of largest entries that is dropped first; `density` has priority where both exceed one.
        scale: lambda, as in task arithmetic.
        weights: one number per model by which its task vector is multiplied.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([9.0, 3.0, -2.0, 0.1])}], base={"w": jnp.zeros(4)})
        >>> print(nm.Breadcrumbs(density=0.5, gamma=0.25, scale=1.0)(stack)["w"])  # neither the largest nor the smallest
        [ 0.  3. -2.  0.]
    """

    density: Density = 0.9
    gamma: float = 0.01
    scale: float = 0.3
    weights: Weights = None

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """The band of magnitudes in the middle."""
        return (Trim(self.density, outliers=self.gamma),)
