"""What a layer group of a merge is learned on: that it makes what its teachers make."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.graph import PyTree
from alignment.layer_groups.groups import Cuts, LayerGroup
from npmerge.arithmetic import mean
from npmerge.base import Merge
from npmerge.masks import mean_where
from npmerge.objectives import Apply, Objective
from npmerge.objectives.base import Check
from npmerge.objectives.losses import OfObjective
from npmerge.sharding import gathered
from npmerge.stack import Stack

Params = Mapping[str, Array]


class Given(NamedTuple):
    """What the loss of a group takes besides theta, leaves by path.

    Attributes:
        stack: the models.
        fixed: leaves that an earlier group has merged.
    """

    stack: Stack
    fixed: dict[str, Array]


@dataclass(frozen=True)
class GroupApply:
    """A layer group as a function of its leaves and of `(inputs of the network, values of earlier groups)`.

    Attributes:
        cuts: where the network is cut.
        index: of the group.
        returns: whether it gives what the network returns, as its last group can, or the values that it makes by number.
    """

    cuts: Cuts
    index: int
    returns: bool = False

    def __call__(self, params: Params, inputs: Any) -> PyTree:
        """What it makes."""
        group = self.group(inputs[0])
        made = group(params, *inputs)
        return group.returned(made) if self.returns else made

    def group(self, inputs: PyTree) -> LayerGroup:
        """The group for inputs of these shapes."""
        return self.cuts.groups(inputs)[self.index]


@dataclass(frozen=True)
class Reconstruction(Objective):
    """Mean over the values that a group makes of mean (h - t)^2 / s, h what it makes and t the target, s the mean of t^2.

    Means are over what counts of the batch. Its targets are (t, s) by number: so parts of a batch add up to the whole.
    """

    masks = True

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The mean over the values."""
        made = apply(params, batch[0])
        errors = [self._error(made[number], t, batch[2:]) / jnp.where(s > 0, s, 1) for number, (t, s) in batch[1].items()]
        return mean(errors)

    def _error(self, x: Array, target: Array, mask: tuple) -> Float[Array, ""]:
        squares = jnp.square(x.astype(jnp.float32) - target)
        return mean_where(squares, jnp.asarray(fitting(mask[0], x.shape))) if mask else squares.mean()


def fitting(mask: Any, shape: tuple[int, ...]) -> Any:
    """A mask for values of this shape: one over positions is that of their second axis, where this is as long."""
    return mask if mask.shape == shape[: mask.ndim] else mask.any(tuple(range(1, mask.ndim)))


@dataclass(frozen=True)
class GroupLoss(OfObjective):
    """`loss(theta, given, batch)` of a layer group."""

    merge: Merge
    apply: GroupApply
    objective: Objective

    def __call__(self, theta: PyTree, given: Given, batch: Any) -> Float[Array, ""]:
        """The objective of the merged group."""
        merged = gathered(self.merge.apply(theta, given.stack))
        return self.objective(self._with(gathered(given.fixed)), merged, given.stack, batch)

    def checker(self, theta: PyTree, given: Given, batch: Any) -> Check:
        """A check for batches like this one."""
        merged = jax.eval_shape(self.merge.apply, theta, given.stack)
        return self.objective.checker(self._with(given.fixed), merged, given.stack, batch)

    def _with(self, fixed: Params) -> Apply:
        return lambda params, inputs: self.apply({**fixed, **params}, inputs)
