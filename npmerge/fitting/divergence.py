"""What is said of a fit that diverged: at which step, as far as that is known, and whether the data are to blame."""

from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from npmerge.batches import non_finite


class DivergedWarning(UserWarning):
    """A fit diverged, and an earlier theta is kept."""


KEPT = 2**26
"""Bytes of batches that are kept at most, besides the latest."""


class Recent:
    """The batches since theta was last looked at, to be looked at if it diverged; the older ones only if they are small."""

    def __init__(self) -> None:
        self.batches: deque[tuple[int, Any]] = deque()
        self.steps, self.bytes = 0, 0

    def add(self, step: int, batch: Any) -> None:
        """The batch of a step."""
        self.batches.append((step, batch))
        self.steps, self.bytes = self.steps + 1, self.bytes + _bytes(batch)
        while self.bytes > KEPT and len(self.batches) > 1:
            self.bytes -= _bytes(self.batches.popleft()[1])

    def clear(self) -> None:
        """Theta was found to be finite."""
        self.batches.clear()
        self.steps, self.bytes = 0, 0


def said_of(losses: np.ndarray, recent: Recent, every: int) -> str:
    """The warning.

    Args:
        losses: of all steps up to the first that is not finite, if one is.
        recent: the batches since the last look at theta.
        every: steps between such looks.
    """
    step = len(losses)
    if not np.isfinite(losses[-1]):
        where = f"at step {step}, where its loss is not finite"
    elif recent.steps == 1:
        where = f"at step {step}, where its gradient or an update is not finite"
    else:
        where = f"at or before step {step} (looked at every {every} steps), where a gradient or an update is not finite"
    advice = "look at result.history.loss, at that batch (labels out of range?), and lower the learning rate"
    kept = "the start" if step == 1 else "an earlier theta"
    return f"the fit diverged {where}: {kept} is kept; {_bad_inputs(recent, step) or advice}"


def _bad_inputs(recent: Recent, last: int) -> str:
    """The first batch with inputs that are not finite, if there is one."""
    for step, batch in recent.batches:
        inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
        for x in jax.tree.leaves(inputs) if step <= last else ():
            here = not isinstance(x, jax.Array) or x.is_fully_addressable
            if here and jnp.issubdtype(jnp.result_type(x), jnp.inexact) and (bad := non_finite(x)):
                return f"the inputs of the batch of step {step} have {bad} non-finite values of {np.size(x)}"
    return ""


def _bytes(batch: Any) -> int:
    return sum(getattr(x, "nbytes", 0) for x in jax.tree.leaves(batch))
