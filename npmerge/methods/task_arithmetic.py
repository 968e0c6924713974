"""Task arithmetic."""

from dataclasses import dataclass

from jaxtyping import Array

from alignment.checks import check_finite_number
from alignment.graph import PyTree
from npmerge.base import Stats
from npmerge.hyper import searched, spaced
from npmerge.linear import LinearMerge, constant
from npmerge.stack import Stack
from npmerge.weights import Weights, check_weights, weights_of


@dataclass(frozen=True)
class TaskArithmetic(LinearMerge):
    """base + scale * sum_m w_m * (params_m - base) (Ilharco et al. 2023). Needs a base.

    Where implementations disagree: lambda multiplies the sum, not the mean, of the task vectors; mergekit divides by the sum of
    the weights if told to normalise, and its lambda is 1 by default; git-theta turns one lambda for exactly two models into
    lambda and 1 - lambda, an interpolation, where here it is that of both.

    Attributes:
        scale: lambda, published default 0.3 for eight tasks; 1/N is the average, a negative value forgets a task.
        weights: w, one number per model, ones in the paper; with scale 1 they are one lambda per task.

    Example:
        >>> models = [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}]
        >>> stack = nm.stack_models(models, base={"w": jnp.zeros(2)})
        >>> print(nm.TaskArithmetic(scale=1.0)(stack)["w"])  # both task vectors whole; their average has half of each
        [1. 2.]
        >>> print(nm.TaskArithmetic(scale=1.0, weights=(1, -1))(stack)["w"])  # the second task is forgotten
        [ 1. -2.]
    """

    scale: float = searched(0.3, spaced(0.0, 1.0, 0.05))
    weights: Weights = None
    needs_base = True

    def __post_init__(self) -> None:
        check_finite_number("scale", self.scale)
        object.__setattr__(self, "weights", check_weights(self, self.weights))

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """Lambda times the weights, everywhere. Raises ValueError without a base, and unless there is one weight per model."""
        self.require_base(stack)
        return constant(stack, self.scale * weights_of(self, self.weights, stack))
