"""DARE: drop and rescale."""

from dataclasses import dataclass
from typing import Literal

from npmerge.hyper import searched, spaced
from npmerge.task_vectors.composed import Composed
from npmerge.task_vectors.elections import Elect
from npmerge.task_vectors.transforms import Drop, Transform
from npmerge.weights import Density, Weights


@dataclass(frozen=True)
class Dare(Composed):
    """base + scale * sum_m mask_m * (params_m - base) / density, each entry kept with that probability (Yu et al. 2024).

    In expectation over keys this is task arithmetic; with density 1 it is. Needs a base and a key.

    Where implementations disagree: some rescale so that each tensor keeps its sum of magnitudes (`rescale="l1"`), which is
    close for large tensors; of those that elect signs some take the mean of the entries that agree, here their sum is taken.

    Attributes:
        density: 1 - p, one number or one per model, p the published drop rate; 0.5 in merge toolkits, as low as 0.1 for
            language models.
        scale: lambda, as in task arithmetic.
        elect: also drop the entries whose sign is not that of the sum, as TIES does.
        rescale: how what is kept makes up for what is dropped, see `transforms.Drop`.
        weights: one number per model by which its task vector is multiplied before signs are elected.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.ones(10_000)}], base={"w": jnp.zeros(10_000)})
        >>> merged = nm.Dare(density=0.1, scale=1.0)(stack, key=jax.random.key(0))["w"]
        >>> print(np.unique(merged), f"{merged.mean():.1f}")  # nine entries of ten are dropped, the mean stays
        [ 0. 10.] 1.0
    """

    density: Density = searched(0.5, spaced(0.1, 0.9, 0.1))
    scale: float = searched(0.3, spaced(0.1, 1.0, 0.1))
    elect: bool = False
    rescale: Literal["density", "l1"] | None = "density"
    weights: Weights = None

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Drop, and elect by the sum if asked to."""
        drop = Drop(self.density, self.rescale)
        return (drop, Elect("sum")) if self.elect else (drop,)
