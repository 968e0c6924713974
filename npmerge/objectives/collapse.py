"""Coefficients that are learned on one task go to the model that solves it already: a warning before the first step."""

import warnings
from collections.abc import Iterable

import jax
import numpy as np

from alignment.checks import check_fraction, check_kinds
from alignment.graph import PyTree
from npmerge.batches import measured
from npmerge.objectives.base import tasks_of, value_over
from npmerge.objectives.losses import WeightSpaceLoss
from npmerge.stack import Stack, check_stack

WARNING = (
    "model {} alone has an objective of {:.3g} on these batches of the only task, the start of the merge one of {:.3g}: "
    "learned coefficients may collapse onto that model; the means of merge.coefficients(result.theta, stack) tell afterwards "
    "whether they did; learn on the data of every model (Joint), or hold them near equal shares (EqualShares), to be safe"
)


def warn_of_collapse(
    loss: WeightSpaceLoss, theta: PyTree, stack: Stack, batches: Iterable[tuple], *, share: float = 0.5
) -> int | None:
    """Warn, in one sentence, if one of the models is far better than the start at the only task that is learned from.

    That is where its objective is below a share of the start's. Coefficients may then collapse onto that model, but need not:
    a start that is bad because averaging broke it can be mended by other coefficients, too. `fit` does not call it: do so once,
    before. It evaluates every model and the start, so held-out batches or the first training batch are enough. Nothing is
    evaluated for joint objectives of several tasks.

    Args:
        loss: `weight_space(merge, apply, objective)`.
        theta: where learning starts.
        stack: the models.
        batches: some to judge by, that end.
        share: of the start's objective; 1 warns of every model that is better than the start.

    Returns:
        The number of that model, or None where there is no warning.

    Raises:
        ValueError: for a loss of another kind, a share that is no fraction, no batches, or what `fit` refuses as held-out ones.

    Example:
        >>> import warnings
        >>> stack, merge = nm.stack_models([{"w": -jnp.eye(2)}, {"w": 9 * jnp.eye(2)}]), nm.np_merge()
        >>> loss = nm.weight_space(merge, lambda v, x: x @ v["w"], nm.CrossEntropy())
        >>> with warnings.catch_warnings(record=True, action="always") as said:
        ...     nm.warn_of_collapse(loss, merge.init(stack), stack, [(jnp.eye(2), np.array([0, 1]))])
        1
        >>> print(said[0].message)
        model 1 alone has an objective of 0.000123 on these batches of the only task, the start of the merge one of 0.0181: ...
    """
    check_kinds("warn_of_collapse takes (loss, theta, stack)", (loss, WeightSpaceLoss), (stack, Stack))
    check_fraction("share", share, positive=True)
    batches = list(measured(batches, masks=loss.masks, each=loss.map_batches))
    if not batches:
        raise ValueError("warn_of_collapse judges by data: got no batches")
    if check_stack(stack).size < 2 or tasks_of(loss.objective, batches[0]) > 1:
        return None
    networks = [jax.jit(loss.merge.apply)(theta, stack), *stack.models()]
    start, *alone = [value_over(loss.objective, loss.apply, network, stack, batches) for network in networks]
    best = int(np.argmin(alone))
    if not alone[best] < start - (1 - share) * abs(start):
        return None
    warnings.warn(WARNING.format(best, alone[best], start), stacklevel=2)
    return best
