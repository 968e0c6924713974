"""A regulariser of the merged network: not far from where it starts."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree
from alignment.weight_distance import weights
from npmerge.arithmetic import mean_of
from npmerge.objectives.base import Apply, Check, Objective
from npmerge.stack import Stack, check_stack


@dataclass(frozen=True)
class Proximity(Objective):
    """Mean over all weights of (p - p_0)^2, p_0 one of the networks that are merged or their mean: L2-SP (Li et al. 2018).

    "Explicit Inductive Bias for Transfer Learning with Convolutional Networks"; for fine-tuning as for merges. Running
    statistics take no part. It reads no data: `Sum((CrossEntropy(), Proximity()), (1.0, 0.1))`. `TowardStart` is the same in
    theta.

    Attributes:
        to: "mean" of the models, which is where a merge that starts at the average starts, "base", or the number of a model.

    Raises:
        ValueError: another network to stay near.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([1.0, 3.0])}, {"w": jnp.array([3.0, 5.0])}])
        >>> value = lambda to: float(nm.Proximity(to)(None, {"w": jnp.array([2.0, 4.0])}, stack, None))
        >>> value("mean"), value(0)
        (0.0, 1.0)
    """

    to: int | Literal["mean", "base"] = "mean"

    masks = True
    reads_batches = False

    def __post_init__(self) -> None:
        number = isinstance(self.to, int | np.integer) and not isinstance(self.to, bool) and self.to >= 0
        if not number and self.to not in ("mean", "base"):
            raise ValueError(f"Proximity is to 'mean', 'base' or the number of a model, got {self.to!r}")

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: Any) -> Float[Array, ""]:
        """The mean over the weights. Raises ValueError without a stack, or without such a network in it."""
        origin = jax.lax.stop_gradient(weights(self._origin(stack)))
        total = [jnp.sum(jnp.square(p - origin[path])) for path, p in weights(params).items()]
        return sum(total[1:], total[0]) / sum(p.size for p in origin.values())

    def map_batches(self, function: Any, batch: Any) -> Any:
        """The batch as it is."""
        return batch

    def checker(self, apply: Apply, params: PyTree, stack: Stack | None, batch: Any) -> Check:
        """The network to stay near must be there; batches may be anything."""
        jax.eval_shape(lambda p, s: self(apply, p, s, ()), params, stack)
        return lambda batch: None

    def check(self, batch: Any, outputs: PyTree) -> None:
        """Nothing is read."""

    def _origin(self, stack: Stack | None) -> PyTree:
        if self.to == "base":
            if check_stack(stack).base is None:
                raise ValueError("Proximity is to the base: got none, use stack_models(models, base=...)")
            return check_stack(stack).base
        models = check_stack(stack).models()
        if self.to == "mean":
            return mean_of(models)
        if self.to >= len(models):
            raise ValueError(f"Proximity is to model {self.to}: the stack has the models 0 to {len(models) - 1}")
        return models[self.to]
