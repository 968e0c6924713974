"""EMR: elect, mask, rescale."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from npmerge.arithmetic import ratio
from npmerge.task_vectors.elections import Elect
from npmerge.task_vectors.per_task import PerTask
from npmerge.task_vectors.transforms import Masks, Tensors, Transform, current, where


@dataclass(frozen=True)
class Emr(PerTask):
    """base + scale * unified, unified the largest entry of the elected sign; and one network per task (Huang et al. 2024).

    EMR-Merging: with t_m the task vectors, the unified vector has in each parameter the sign of their sum and the largest
    magnitude of those with that sign. `task` gives the network of task m, base + scale_m * mask_m * unified, with mask_m where
    t_m has the elected sign and scale_m = sum |t_m| / sum |mask_m * unified|, over all parameters. The paper uses those only;
    `apply` is the unified vector as one network. Needs a base.

    Where implementations disagree: the published program takes means of each tensor and adds those up for scale_m, so that
    small tensors count as much as large ones, here the sums of the paper; where the sum is zero it elects minus, here plus.

    Attributes:
        scale: lambda of the unified vector; tasks are rescaled whatever it is.

    Example:
        >>> models = [{"w": jnp.array([4.0, 0.0, 2.0])}, {"w": jnp.array([2.0, -6.0, 0.0])}]
        >>> stack, merge = nm.stack_models(models, base={"w": jnp.zeros(3)}), nm.Emr()
        >>> theta = merge.init(stack)
        >>> print(merge.apply(theta, stack)["w"])
        [ 4. -6.  2.]
        >>> print(*(np.array(merge.task(theta, stack, k)["w"]).round(3) for k in (0, 1)))  # as large as the task vectors
        [4. 0. 2.] [ 3.2 -4.8  0. ]
    """

    scale: float = 1.0

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Elect by the sum, and the largest."""
        return (Elect("sum"), Largest())

    def masks(self, vectors: Tensors) -> Masks:
        """Where the sign is the elected one."""
        return Elect("sum").masks(vectors)

    def rescale(self, vectors: Tensors, kept: Tensors) -> Float[Array, " models"]:
        """Sum |t_m| / sum |kept|, and zero for a task of which nothing is kept."""
        return ratio(_sizes(vectors), _sizes(kept))


@dataclass(frozen=True)
class Largest(Transform):
    """Keep the entry of largest magnitude of each parameter, of equal ones the first."""

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Zero for all models but one."""
        return where(jax.tree.map(_largest, current(coefficients, vectors)), coefficients)


def _largest(x: Float[Array, "models ..."]) -> Bool[Array, "models ..."]:
    return jnp.argmax(jnp.abs(x), 0)[None] == jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)


def _sizes(tensors: Tensors) -> Float[Array, " models"]:
    return jnp.stack([jnp.abs(x).reshape(len(x), -1).sum(1) for x in tensors.values()]).sum(0)
