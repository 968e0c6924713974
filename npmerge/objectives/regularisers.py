"""Regularisers of theta, as losses: `weighted_sum` adds them to another one."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.checks import kind_of
from alignment.graph import PyTree, flatten, floating
from npmerge.aligned import Aligned
from npmerge.learned import Learned
from npmerge.stack import Stack


@dataclass(frozen=True)
class EqualShares:
    """`loss(theta, stack, batch)`: mean over all coefficients of (c - 1/N)^2, N the number of models; reads no data.

    It keeps coefficients from collapsing onto one model where one task alone is learned (`warn_of_collapse`).

    Attributes:
        merge: the `Learned` whose coefficients they are, or an `Aligned` of one.

    Raises:
        ValueError: a merge that has no learned coefficients.

    Example:
        >>> merge = nm.Learned(nm.Average(), nm.PerModel(), nm.Simplex())  # of two models
        >>> penalty = nm.EqualShares(merge)
        >>> print(penalty({"all": jnp.array([0.0])}, None, None), penalty({"all": jnp.array([99.0])}, None, None))
        0.0 0.25
        >>> loss = nm.weighted_sum((nm.weight_space(merge, lambda v, x: x @ v["w"], nm.Entropy()), penalty), (1.0, 0.1))
    """

    merge: Learned | Aligned

    reads_batches = False

    def __post_init__(self) -> None:
        if not isinstance(self._learned, Learned):
            raise ValueError(f"EqualShares is of the coefficients of a Learned merge, got {kind_of(self.merge)}")

    def __call__(self, theta: PyTree, stack: Stack | None, batch: Any) -> Float[Array, ""]:
        """The mean over the coefficients, each counted once, whatever the number of parameters that share it."""
        latents = theta["merge"] if isinstance(self.merge, Aligned) else theta
        latents = latents if self._learned.masks is None else latents["latents"]
        shares = [self._learned.constraint.forward(x) for x in latents.values()]
        total = [jnp.sum(jnp.square(c.astype(jnp.float32) - 1 / len(c))) for c in shares]
        return sum(total[1:], total[0]) / sum(c.size for c in shares)

    @property
    def _learned(self) -> Any:
        return self.merge.merge if isinstance(self.merge, Aligned) else self.merge


@dataclass(frozen=True, eq=False)
class TowardStart:
    """`loss(theta, stack, batch)`: mean over the floating-point numbers of theta of (theta - start)^2; reads no data.

    L2 in the merge's own parameters: of latents, where those are constrained. Leaves that are the same number everywhere, as
    those of a merge that starts at the average, are kept as that one number; others are constants of the compiled step. For
    networks in the place of theta take `Proximity`, which reads them from the stack.

    Attributes:
        start: theta to stay near, such as `merge.init(stack)`.

    Raises:
        ValueError: a start without floating-point leaves.

    Example:
        >>> start = {"all": jnp.array([0.0, 0.0])}
        >>> penalty = nm.TowardStart(start)
        >>> print(penalty(start, None, None), penalty({"all": jnp.array([3.0, 1.0])}, None, None))
        0.0 5.0
    """

    start: PyTree

    reads_batches = False

    def __post_init__(self) -> None:
        if not floating(self.start):
            raise ValueError(
                f"TowardStart takes the theta to start from, got {kind_of(self.start)} without floating-point leaves"
            )
        object.__setattr__(self, "shapes", {path: np.shape(x) for path, x in flatten(self.start).items()})
        object.__setattr__(self, "start", {path: _compact(x) for path, x in floating(self.start).items()})

    def __call__(self, theta: PyTree, stack: Stack | None, batch: Any) -> Float[Array, ""]:
        """The mean over theta. Raises ValueError for a theta of other shapes."""
        self.check_theta(theta, stack)
        leaves = {path: jnp.asarray(x) for path, x in floating(theta).items()}
        total = [jnp.sum(jnp.square(x - jnp.broadcast_to(jnp.asarray(self.start[path], x.dtype), x.shape)).astype(jnp.float32))
                 for path, x in leaves.items()]  # fmt: skip
        return sum(total[1:], total[0]) / sum(math.prod(x.shape) for x in leaves.values())

    def check_theta(self, theta: PyTree, stack: Stack | None) -> None:
        """Raise ValueError unless theta is like the start."""
        ours: dict[str, tuple[int, ...]] = self.shapes  # type: ignore[attr-defined]
        theirs = {path: np.shape(x) for path, x in flatten(theta).items()}
        for path in [*ours, *theirs]:
            got, expected = theirs.get(path, "no such leaf"), ours.get(path, "no such leaf")
            if got != expected:
                raise ValueError(f"theta is not like the start at {path!r}: got {got}, expected {expected}")


def _compact(x: Any) -> np.ndarray | jax.Array:
    """A number, where all are equal."""
    first = np.asarray(x).reshape(-1)[:1]
    return first.reshape(()) if first.size and bool((np.asarray(x) == first).all()) else x
