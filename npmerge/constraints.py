"""Where coefficients may live: each constraint maps unconstrained latents to coefficients, and back."""

import abc
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from npmerge.arithmetic import wide
from npmerge.mixtures import on_simplex

FLOOR = 1e-7
"""Distance from the boundary at which a start is placed: its latent stays finite, its coefficient equal to rounding."""


class Constraint(abc.ABC):
    """A smooth map from latents to coefficients. Axis 0 of a coefficient runs over the models."""

    @abc.abstractmethod
    def forward(self, latent: Float[Array, "rows ..."]) -> Float[Array, "models ..."]:
        """Coefficients of a latent."""

    @abc.abstractmethod
    def inverse(self, coefficients: Float[Array, "models ..."]) -> Float[Array, "rows ..."]:
        """A latent whose coefficients these are, up to `FLOOR`. Traceable."""

    def mixed(self, latent: Float[Array, "rows ..."], models: Float[Array, "models ..."]) -> Float[Array, "..."]:
        """The sum over the models of each times its coefficient, in float32; the latent broadcasts against them."""
        shares = jnp.unstack(self.forward(latent))  # the gradient of an index would be as large as all of them, for each model
        return functools.reduce(jnp.add, [c.astype(wide(w).dtype) * wide(w) for c, w in zip(shares, models, strict=True)])

    def check(self, coefficients: Float[np.ndarray, "models ..."]) -> None:  # noqa: B027 (nothing to check is the default)
        """Raise ValueError unless some latent has these coefficients."""


@dataclass(frozen=True)
class Free(Constraint):
    """Any real number: the latent is the coefficient.

    Example:
        >>> merge = nm.Learned(nm.Average(), nm.PerModel(), nm.Free())
        >>> stack = nm.stack_models([{"w": jnp.array([1.0, 3.0])}, {"w": jnp.array([3.0, 5.0])}])
        >>> print(merge.init(stack)["all"], merge.apply({"all": jnp.array([2.0, -1.0])}, stack)["w"])
        [0.5 0.5] [-1.  1.]
    """

    def forward(self, latent: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        """The identity."""
        return latent

    def inverse(self, coefficients: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        """The identity."""
        return coefficients


@dataclass(frozen=True)
class _Interval(Constraint):
    """Each coefficient in [low, high]."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"{type(self).__name__} needs low < high, got low={self.low}, high={self.high}")

    def check(self, coefficients: Float[np.ndarray, "models ..."]) -> None:
        """Each coefficient in the interval."""
        outside = (coefficients < self.low - FLOOR) | (coefficients > self.high + FLOOR)
        _refuse(coefficients, outside, f"outside the box [{self.low}, {self.high}], such as")


@dataclass(frozen=True)
class Box(_Interval):
    """Each coefficient in [low, high], by a sigmoid.

    Attributes:
        low: no coefficient reaches it.
        high: likewise.

    Raises:
        ValueError: low that is not below high.

    Example:
        >>> box = nm.Box(0.0, 2.0)
        >>> latent = box.inverse(jnp.array([0.5, 1.0]))
        >>> print(latent.round(2), box.forward(latent).round(2), box.forward(latent + 100))
        [-1.1  0. ] [0.5 1. ] [2. 2.]
    """

    def forward(self, latent: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        """Low + (high - low) sigmoid(latent)."""
        return self.low + (self.high - self.low) * jax.nn.sigmoid(latent)

    def inverse(self, coefficients: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        """The logit."""
        inside = (coefficients - self.low) / (self.high - self.low)
        return jax.scipy.special.logit(jnp.clip(inside, FLOOR, 1 - FLOOR))


@dataclass(frozen=True)
class Clip(_Interval):
    """Each coefficient in [low, high]: the latent is the coefficient, cut off at the ends, as AdaMerging does.

    A latent outside has no gradient: a step that overshoots is not undone. `Box` has no such ends.

    Attributes:
        low: the least coefficient.
        high: the largest.

    Raises:
        ValueError: low that is not below high.

    Example:
        >>> latent = jnp.array([-0.2, 0.3, 1.7])
        >>> print(nm.Clip().forward(latent), jax.grad(lambda a: nm.Clip().forward(a).sum())(latent))
        [0.  0.3 1. ] [0. 1. 0.]
    """

    def forward(self, latent: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        """min(max(latent, low), high)."""
        return jnp.clip(latent, self.low, self.high)

    def inverse(self, coefficients: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
        """The identity."""
        return coefficients


@dataclass(frozen=True)
class Simplex(Constraint):
    """Coefficients that are positive and sum to one over the models: every parameter stays between the models'.

    For two models one latent a with coefficients sigmoid(a), 1 - sigmoid(a), exactly NP Merge (Orozco Camacho et al. 2024);
    for more a softmax over one latent each.

    Example:
        >>> simplex = nm.Simplex()
        >>> latent = simplex.inverse(jnp.array([[0.25], [0.75]]))  # of two models: one row
        >>> print(latent.round(2), simplex.forward(latent).ravel().round(2))
        [[-1.1]] [0.25 0.75]
        >>> simplex.inverse(jnp.array([[0.2], [0.3], [0.5]])).shape  # of three: one each
        (3, 1)
    """

    def forward(self, latent: Float[Array, "rows ..."]) -> Float[Array, "models ..."]:
        """Sigmoid for one row, softmax over the rows otherwise."""
        if latent.shape[0] > 1:
            return jax.nn.softmax(latent, axis=0)
        return jnp.concatenate([jax.nn.sigmoid(latent), jax.nn.sigmoid(-latent)])

    def mixed(self, latent: Float[Array, "rows ..."], models: Float[Array, "models ..."]) -> Float[Array, "..."]:
        """The same as for every constraint, in far less memory and time; differentiable in reverse only."""
        columns = latent.shape[-1:] > (1,) and latent.shape[1:] != models.shape[1:]
        if columns:  # a coefficient per channel: its gradient sums over all axes but the last, which XLA fuses badly on CPUs
            return super().mixed(latent, models)
        return on_simplex(latent, models)

    def inverse(self, coefficients: Float[Array, "models ..."]) -> Float[Array, "rows ..."]:
        """Log-odds for two models, centred logarithms otherwise."""
        logs = jnp.log(jnp.maximum(coefficients, FLOOR))
        if len(logs) == 2:
            return logs[:1] - logs[1:]
        return logs - logs.mean(0, keepdims=True)

    def check(self, coefficients: Float[np.ndarray, "models ..."]) -> None:
        """At least two models, nothing negative, a sum of one."""
        if len(coefficients) == 1:
            raise ValueError("Simplex needs at least two models, got 1: its only coefficient could not move from one")
        _refuse(coefficients, coefficients < -FLOOR, "outside the simplex, such as")
        total = coefficients.sum(0)
        _refuse(total, np.abs(total - 1) > 1e-5, "outside the simplex: over the models they sum to")


def _refuse(values: np.ndarray, bad: np.ndarray, what: str) -> None:
    if bad.any():
        raise ValueError(f"the start has coefficients {what} {float(values[bad][0]):.4g}; choose another constraint")
