"""When a run has come to a plateau of its held-out loss: the rate falls, and at last it stops."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from alignment.checks import check_count, check_fraction, check_number
from alignment.graph import PyTree


class Advice(NamedTuple):
    """What a `Plateau` says after a judgement.

    Attributes:
        factor: what the first learning rate is to be multiplied by.
        stop: whether the run is over.

    Example:
        >>> nm.Plateau(patience=1)([0.5, 0.6])
        Advice(factor=1.0, stop=True)
    """

    factor: float
    stop: bool


@dataclass(frozen=True)
class Plateau:
    """Early stopping: after so many judgements in a row without a new best the rate is cut, and after the last cut it is over.

    A function of the held-out losses so far and of nothing else, so it serves any loop and goes on where that was interrupted.
    As `patience=` of `fit` it does both by itself. Experts that stop so, each where its own task says, are what Horoi et al.
    2025 (arXiv 2506.14126) merge, since long training hurts the merge; they look at accuracies: pass those negated.

    Attributes:
        patience: judgements in a row without a new best, before the first cut, after each, and before the end.
        least: by how much a loss must be below the best one to be a new best, in the units of the loss.
        cuts: how often the rate is cut; 0 stops at the first plateau.
        factor: what it is multiplied by each time.

    Raises:
        ValueError: a patience below 1, negative numbers, a factor outside (0, 1].

    Example:
        >>> rule = nm.Plateau(patience=2, cuts=1, factor=0.1)
        >>> losses = [1.0, 0.8, 0.9, 0.8, 0.7, 0.7, 0.7]
        >>> [rule(losses[: k + 1]) for k in (2, 3, 4, 6)]  # cut at the fourth judgement, over at the seventh
        [Advice(factor=1.0, stop=False), Advice(factor=0.1, stop=False), Advice(factor=0.1, stop=False), \
Advice(factor=0.1, stop=True)]
    """

    patience: int
    least: float = 0.0
    cuts: int = 0
    factor: float = 0.1

    def __post_init__(self) -> None:
        check_count("patience", self.patience)
        check_count("cuts", self.cuts, 0)
        check_number("least", self.least)
        check_fraction("factor", self.factor, positive=True)

    def __call__(self, losses: Sequence[float]) -> Advice:
        """What is to be done after the last of these held-out losses; the first one is that of the start."""
        best, stale, cuts = math.inf, 0, 0
        for k, loss in enumerate(losses):
            if k == 0 or (math.isfinite(loss) and loss < best - self.least):
                best, stale = (loss if math.isfinite(loss) else math.inf), 0
                continue
            stale += 1
            if stale >= self.patience:
                if cuts == self.cuts:
                    return Advice(self.factor**cuts, stop=True)
                cuts, stale = cuts + 1, 0
        return Advice(self.factor**cuts, stop=False)

    def slowed(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimizer with updates times a `factor` in its state; itself if the rate is never cut."""
        if not self.cuts:
            return optimizer
        return optax.GradientTransformation(_Init(optimizer.init), _Update(optimizer.update))


class Slowed(NamedTuple):
    """The state of an optimizer whose rate a `Plateau` cuts."""

    inner: PyTree
    factor: Float[Array, "..."]

    def at(self, factor: float) -> "Slowed":
        """The same, with another factor."""
        return self._replace(factor=jnp.full_like(self.factor, factor))


@dataclass(frozen=True)
class _Init:
    """Equal for equal optimizers, so that their compiled step is found again."""

    inner: Any

    def __call__(self, params: PyTree) -> Slowed:
        return Slowed(self.inner(params), jnp.float32(1))


@dataclass(frozen=True)
class _Update:
    inner: Any

    def __call__(self, updates: PyTree, state: Slowed, params: PyTree = None) -> tuple[PyTree, Slowed]:
        found, inner = self.inner(updates, state.inner, params)
        return jax.tree.map(lambda x: (state.factor * x).astype(x.dtype), found), state._replace(inner=inner)
