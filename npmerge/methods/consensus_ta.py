"""Consensus task arithmetic, with TALL masks."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignment.checks import check_count, check_number
from npmerge.arithmetic import over_models
from npmerge.hyper import searched
from npmerge.task_vectors.composed import Composed
from npmerge.task_vectors.transforms import Tensors, Transform, current, where


@dataclass(frozen=True)
class ConsensusTA(Composed):
    """base + scale * sum_m (params_m - base), only of parameters that enough tasks need (Wang et al. 2024).

    With t_m the task vectors and t their sum, task m needs a parameter if |t_m| > threshold * |t - t_m| (its TALL mask);
    parameters that fewer than `agreement` tasks need, none or one of them by default, stay at the base. Needs a base.

    Where implementations disagree: t is the unscaled sum; some compare with the base itself, |base - t_m|, by mistake. The
    papers choose each task's threshold on validation data, here it is one for all.

    Attributes:
        threshold: how many times as large as the others' sum an entry must be.
        agreement: tasks that must need a parameter; 0 is task arithmetic, more than there are models gives the base.
        scale: lambda, as in task arithmetic.

    Example:
        >>> models = [{"w": jnp.array([1.0, 5.0])}, {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([1.0, 0.0])}]
        >>> stack = nm.stack_models(models, base={"w": jnp.zeros(2)})
        >>> print(nm.ConsensusTA(scale=1.0)(stack)["w"])  # only one task needs the second parameter
        [3. 0.]
    """

    threshold: float = searched(0.4, (0.2, 0.3, 0.4, 0.5, 0.6))
    agreement: int = 2
    scale: float = 0.3

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """One mask for all models."""
        return (Consensus(self.threshold, self.agreement),)


@dataclass(frozen=True)
class Consensus(Transform):
    """Keep the parameters that at least `agreement` tasks need, for all models alike."""

    threshold: float
    agreement: int

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold)
        check_count("agreement", self.agreement, 0)

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Zero for all models where too few need it."""
        needed = {path: tall_masks(x, self.threshold) for path, x in current(coefficients, vectors).items()}
        few = {path: min(int(self.agreement), len(m) + 1) for path, m in needed.items()}
        return where({path: over_models(m.astype(jnp.int32)) >= few[path] for path, m in needed.items()}, coefficients)


def tall_masks(vectors: Float[Array, "models ..."], threshold: float) -> Bool[Array, "models ..."]:
    """|t_m| > threshold * |sum_j t_j - t_m|: the entries of the multi-task vector that task m needs."""
    others = over_models(vectors) - vectors
    return jnp.abs(vectors) > float(threshold) * jnp.abs(others)
