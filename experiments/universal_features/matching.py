"""Which features of two networks are the same: those whose activations on the same tokens correlate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from experiments.universal_features.dictionary import Dictionary

TOKENS = 4096
"""At a time: activations of all tokens at once would not fit."""


class Measured(NamedTuple):
    """A dictionary at the tokens that all are compared at.

    Attributes:
        dictionary: of features.
        units: of its network, at these tokens.
        fires: how often each feature is active.
    """

    dictionary: Dictionary
    units: Float[np.ndarray, "tokens units"]
    fires: Float[np.ndarray, " features"]


class Match(NamedTuple):
    """Features of a parent and of a child that count.

    Attributes:
        correlation: between them, (parent's, child's).
        kept: whether a feature of the parent has one of the child at the threshold or above.
        known: whether a feature of the child has one of the parent.
        mutual: whether a kept feature is also the best of its best.
    """

    correlation: Float[np.ndarray, "parent child"]
    kept: Bool[np.ndarray, " parent"]
    known: Bool[np.ndarray, " child"]
    mutual: Bool[np.ndarray, " parent"]

    def counts(self) -> dict[str, Any]:
        """For a row."""
        return {
            "of_parent": len(self.kept),
            "of_child": len(self.known),
            "persist": int(self.kept.sum()),
            "mutual": int(self.mutual.sum()),
            "disappear": int((~self.kept).sum()),
            "emerge": int((~self.known).sum()),
            "correlation": round(float(self.correlation.max(1).mean()), 5) if self.correlation.size else 0.0,
        }


def measured(dictionary: Dictionary, units: Float[np.ndarray, "tokens units"]) -> Measured:
    """How often each feature is active."""
    parts = [np.asarray(_fires(dictionary, part)) for part in _parts(units)]
    return Measured(dictionary, units, np.sum(parts, axis=0))


def matched(parent: Measured, child: Measured, *, threshold: float, fires: int) -> Match:
    """Which features persist, of those that are active so often.

    Args:
        parent: one network.
        child: another one, at the same tokens.
        threshold: of Pearson's correlation.
        fires: tokens at least.

    Raises:
        ValueError: other numbers of tokens.
    """
    if len(parent.units) != len(child.units):
        raise ValueError(f"features are compared at the same tokens, got {len(parent.units)} and {len(child.units)}")
    found = correlations(parent, child)[np.ix_(parent.fires >= fires, child.fires >= fires)]
    if not found.size:
        return Match(found, np.zeros(found.shape[0], bool), np.zeros(found.shape[1], bool), np.zeros(found.shape[0], bool))
    kept, best = found.max(1) >= threshold, found.argmax(1)
    mutual = kept & (found.argmax(0)[best] == np.arange(len(found)))
    return Match(found, kept, found.max(0) >= threshold, mutual)


def correlations(parent: Measured, child: Measured) -> Float[np.ndarray, "parent child"]:
    """Pearson's, in one pass over the tokens; zero where a feature is never active."""
    total: list[np.ndarray] = []
    for ours, theirs in zip(_parts(parent.units), _parts(child.units), strict=True):
        sums = [np.asarray(x, np.float64) for x in _sums(parent.dictionary, child.dictionary, ours, theirs)]
        total = sums if not total else [a + b for a, b in zip(total, sums, strict=True)]
    f, g, ff, gg, fg = (x / len(parent.units) for x in total)
    spread = np.sqrt(np.maximum(ff - f * f, 0))[:, None] * np.sqrt(np.maximum(gg - g * g, 0))[None]
    return np.where(spread > 1e-12, (fg - f[:, None] * g[None]) / np.maximum(spread, 1e-12), 0)


def _parts(x: Float[np.ndarray, "tokens units"]) -> list[np.ndarray]:
    return [x[k : k + TOKENS] for k in range(0, len(x), TOKENS)]


@jax.jit
def _fires(dictionary: Dictionary, x: Array) -> Array:
    return (dictionary.encode(x) > 0).sum(0)


@jax.jit
def _sums(a: Dictionary, b: Dictionary, x: Array, y: Array) -> tuple[Array, ...]:
    f, g = a.encode(x), b.encode(y)
    product = jnp.matmul(f.T, g, precision=jax.lax.Precision.HIGHEST)
    return f.sum(0), g.sum(0), jnp.square(f).sum(0), jnp.square(g).sum(0), product
