"""TALL masks: one network per task out of a multi-task vector."""

from dataclasses import dataclass

from alignment.checks import check_number
from npmerge.hyper import searched
from npmerge.methods.consensus_ta import tall_masks
from npmerge.task_vectors.per_task import PerTask
from npmerge.task_vectors.transforms import Masks, Tensors, Transform


@dataclass(frozen=True)
class TallMasks(PerTask):
    """base + scale * sum_m (params_m - base), and one network per task with a mask on the sum (Wang et al. 2024).

    With t_m the task vectors and t their sum, `task` gives base + scale * mask_m * t, mask_m where |t_m| > threshold *
    |t - t_m|: entries in which the multi-task vector is closer to the task's own. `apply` is task arithmetic. Needs a base.

    Where implementations disagree: some compare with the base itself, |base - t_m|, by mistake; the papers choose each task's
    threshold on validation data, here it is one for all.

    Attributes:
        threshold: with 0 a mask is where the task vector is not zero.
        scale: lambda of the multi-task vector, 1 for the networks of the tasks.

    Example:
        >>> models = [{"w": jnp.array([2.0, 0.0, 1.0])}, {"w": jnp.array([0.0, 3.0, 1.0])}]
        >>> stack, merge = nm.stack_models(models, base={"w": jnp.zeros(3)}), nm.TallMasks()
        >>> theta = merge.init(stack)
        >>> print(merge.apply(theta, stack)["w"])  # the sum
        [2. 3. 2.]
        >>> print(*(merge.task(theta, stack, k)["w"] for k in (0, 1)))  # and of it what each task needs
        [2. 0. 2.] [0. 3. 2.]
    """

    threshold: float = searched(0.4, (0.2, 0.3, 0.4, 0.5, 0.6))
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold)
        super().__post_init__()

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """None: the sum as it is."""
        return ()

    def masks(self, vectors: Tensors) -> Masks:
        """The TALL masks."""
        return {path: tall_masks(x, self.threshold) for path, x in vectors.items()}
