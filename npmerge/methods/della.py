"""DELLA: drop by magnitude, elect signs, fuse."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.checks import check_fraction
from npmerge.arithmetic import column
from npmerge.task_vectors.composed import Composed
from npmerge.task_vectors.elections import DisjointMean, Elect
from npmerge.task_vectors.transforms import RandomDrop, Transform
from npmerge.weights import Density, Weights, densities_of


@dataclass(frozen=True)
class Della(Composed):
    """As TIES, but the entries of a row are kept at random, large ones more likely (Deep et al. 2024).

    An entry of rank r among the magnitudes of its row, 0 to 1, is kept with probability p = density - epsilon + 2 epsilon r
    and divided by p. A row is what enters one output unit: all axes but the last; a vector is one row. Needs a base and a key.

    Where implementations disagree: the width of the range of p is 2 epsilon in merge toolkits and here, epsilon in the paper;
    some rescale each tensor to its sum of magnitudes rather than each entry by 1 / p; rows of one entry, 0 / 0 there, have
    p = density. Equal magnitudes rank by index.

    Attributes:
        density: the mean probability, one number or one per model; 1 drops nothing whatever epsilon: TIES without trimming.
        epsilon: how far the probabilities reach from it to either side.
        scale: lambda.
        weights: as of `Ties`: of the task vectors, before signs are elected, and of the mean of those that agree.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.linspace(0.1, 1.0, 1000)}], base={"w": jnp.zeros(1000)})
        >>> kept = nm.Della(density=0.5, epsilon=0.4)(stack, key=jax.random.key(0))["w"] > 0
        >>> print(f"{kept[:500].mean():.1f} of the small half, {kept[500:].mean():.1f} of the large half")
        0.3 of the small half, 0.7 of the large half
    """

    density: Density = 0.5
    epsilon: float = 0.15
    scale: float = 1.0
    weights: Weights = None

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Drop, elect by the sum, and the mean."""
        return (DropByRank(self.density, self.epsilon), Elect("sum"), DisjointMean(weights=self.weights))


@dataclass(frozen=True)
class DropByRank(RandomDrop):
    """Keep each entry with a probability that grows with the rank of its magnitude, and divide by it. Fields as in `Della`."""

    epsilon: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("epsilon", self.epsilon)
        for density in np.atleast_1d(self.density).tolist():
            if density < 1 and not self.epsilon < density <= 1 - self.epsilon:
                raise ValueError(
                    f"Della needs epsilon < density <= 1 - epsilon: got epsilon {self.epsilon} and density {density}, "
                    "the probabilities would leave (0, 1]"
                )

    def probability(self, x: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        """From density - epsilon to density + epsilon by rank; 1 in a model of density 1."""
        rows = jnp.abs(x).reshape((len(x), -1, x.shape[-1] if x.ndim > 2 else 1))
        ranks = jnp.argsort(jnp.argsort(rows, 1), 1).astype(jnp.float32)
        last = rows.shape[1] - 1
        density = densities_of(self.density, len(x))
        reach = np.where(density < 1, self.epsilon, 0)
        spread = 2 * ranks / last - 1 if last else 0 * ranks
        return (column(density, ranks) + column(reach, ranks) * spread).reshape(x.shape)
