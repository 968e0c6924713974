"""TIES: trim, elect signs, disjoint merge."""

from dataclasses import dataclass
from typing import Literal

from alignment.checks import check_choice
from npmerge.hyper import searched, spaced
from npmerge.task_vectors.composed import Composed
from npmerge.task_vectors.elections import DisjointMean, Elect, ElectedMean
from npmerge.task_vectors.transforms import Scope, Transform, Trim
from npmerge.weights import Density, Weights


@dataclass(frozen=True)
class Ties(Composed):
    """base + scale * mean over the models that agree of their trimmed task vectors (Yadav et al. 2023).

    Of each task vector the entries of largest magnitude are kept; for each parameter the sign of their sum is elected; those
    of that sign are averaged, zeros not counted. Needs a base.

    Where implementations disagree: the published code trims the whole model and some others each tensor (`scope`); it keeps
    one entry more than the density, and more where magnitudes are equal, here exactly the nearest number is kept; a parameter
    whose sum is zero takes the sign of the majority of all parameters there, and plus here.

    Attributes:
        density: the fraction of entries that is kept, one number or one per model; published default 0.2.
        scale: lambda; 1 without validation data, else searched.
        scope: what entries compete with, "model" or "tensor".
        merge: "mean" of the entries that agree, or their "sum", for which lambda is about that of task arithmetic.
        weights: one number per model by which its task vector is multiplied before signs are elected, ones in the
            paper; the mean then divides by the sum of those of the models that agree.

    Example:
        >>> models = [{"w": jnp.array([4.0, 1.0, -3.0])}, {"w": jnp.array([-1.0, 2.0, -5.0])}]
        >>> stack = nm.stack_models(models, base={"w": jnp.zeros(3)})
        >>> print(nm.Ties(density=1.0)(stack)["w"])  # -1 lost the election; the average is [1.5 1.5 -4.]
        [ 4.   1.5 -4. ]
        >>> print(nm.Ties(density=2 / 3)(stack)["w"])  # the smallest entry of each is trimmed first
        [ 4.  2. -4.]
    """

    density: Density = 0.2
    scale: float = searched(1.0, spaced(0.8, 1.9, 0.1))
    scope: Scope = "model"
    merge: Literal["mean", "sum"] = "mean"
    weights: Weights = None

    def __post_init__(self) -> None:
        check_choice("merge", self.merge, ("mean", "sum"))
        super().__post_init__()

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Trim, elect by the sum, and the mean."""
        trim = Trim(self.density, self.scope)
        if self.merge == "sum":
            return trim, Elect("sum")
        if self.weights is None or min(self.weights) > 0:
            return trim, ElectedMean(self.weights)
        return trim, Elect("sum"), DisjointMean(weights=self.weights)
