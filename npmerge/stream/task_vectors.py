"""Kernels of the methods that add up task vectors after trimming them, dropping entries, or electing signs."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, UInt32

from npmerge.arithmetic import ratio, summed
from npmerge.recipe.plan import Step
from npmerge.stream.arrays import Padded, Rounded, Values, moved, padded, precise, rounded, sums, told, vectors
from npmerge.stream.blocks import Block, Merged, Tensor
from npmerge.stream.masks import key_of, place_of, uniform
from npmerge.stream.selection_in_blocks import Selected, cuts, magnitudes, select, selected_of
from npmerge.task_vectors.selection import kept_of

Trimmed = Literal["largest", "middle"] | None
"""Which magnitudes are kept."""


class Bounds(NamedTuple):
    """What is kept of each model: entries above a threshold, and those at it before a place in the block."""

    threshold: Int32[Values, "targets models"]
    cut: Int32[Values, "targets models"]


class Drawn(NamedTuple):
    """Which entries are kept at random: the key, the place of the block in each model's numbers, and the probabilities."""

    key: UInt32[Values, "2"]
    places: UInt32[Values, "models 2"]
    density: Float[Values, "models entries_or_1"]


class Given(NamedTuple):
    """The numbers of one block.

    Attributes:
        factors: what task vectors are multiplied by.
        shares: of the models in the sum that the mean divides by; None to take the sum.
        scale: of the result.
        bounds: those of the second target, if there are two, are left out again; None keeps all.
        drawn: None drops nothing.
    """

    factors: Float[Values, "models entries_or_1"]
    shares: Float[Values, " models"] | None
    scale: Float[Values, ""]
    bounds: Bounds | None
    drawn: Drawn | None


class Surveyed(NamedTuple):
    """What is known of a tensor: what is selected, and what makes up for what is dropped."""

    selected: Selected | None
    rescale: Float[np.ndarray, " models"]


@dataclass(frozen=True)
class TaskVectors:
    """base + lambda * sum_m w_m mask_m (params_m - base), perhaps of the elected sign only, perhaps over the sum of weights.

    Attributes:
        trim: by magnitude, entries kept by `density`: "largest", "middle" without the fraction `gamma` of largest ones, None.
        drop: at random instead, each kept with the probability `density`.
        elect: only entries whose sign is that of the sum over the models.
        mergekit_semantics: numbers of kept entries are rounded down, and sums of magnitudes are kept where entries are dropped.
        seed: of what is drawn.
    """

    trim: Trimmed = None
    drop: bool = False
    elect: bool = False
    mergekit_semantics: bool = False
    seed: int = 0
    in_blocks = True

    def survey(self, tensor: Tensor) -> Surveyed:
        """The thresholds, and the factors that keep sums of magnitudes."""
        step, models = tensor.step, len(tensor.step.sources)
        selected = None
        if self.trim and tensor.size and (per_model(step, "density") < 1).any():
            selected = select(tensor, magnitudes, self._wanted(step, tensor.size))
        found = Surveyed(selected, np.ones(models))
        if not self._keeps_sums(step):
            return found
        parts = tensor.each(lambda block: sums_of(block, self._given(block, found, step)))
        before, after = np.stack(parts).sum(0) if parts else np.zeros((2, models))
        return found._replace(rescale=np.divide(before, after, out=np.ones(models), where=after > 0))

    def merge(self, block: Block, surveyed: Surveyed, step: Step) -> Merged:
        """See `Kernel`."""
        with precise(block):
            found = merged(padded(block), self._given(block, surveyed, step), self.elect, step.dtype)
            return told(found, len(block.models[0]), step.dtype)

    def _wanted(self, step: Step, size: int) -> Int[np.ndarray, "targets models"]:
        """Numbers of entries: the largest of them, and those that are left out of these again."""
        density = per_model(step, "density").tolist()
        if self.mergekit_semantics:
            least = 1 if self.trim == "largest" else 0
            kept = np.array([max(least, int(d * size)) if d > 0 else 0 for d in density])
        else:
            kept = np.array([kept_of(d, size) if d > 0 else 0 for d in density])
        if self.trim == "largest":
            return kept[None]
        fraction = per_model(step, "gamma") * size
        above = np.minimum(np.floor(fraction) if self.mergekit_semantics else np.round(fraction), size - kept).astype(np.int64)
        return np.stack([above + kept, above])

    def _keeps_sums(self, step: Step) -> bool:
        rescaled = bool(step.parameters.get("rescale", False)) and bool((per_model(step, "density") < 1).any())
        return rescaled and (self.mergekit_semantics or not self.drop)

    def _given(self, block: Block, surveyed: Surveyed, step: Step) -> Given:
        weights = per_model(step, "weight").astype(np.float32)
        factors = weights * surveyed.rescale.astype(np.float32)
        bounds = drawn = None
        if surveyed.selected is not None:
            threshold = surveyed.selected.threshold.astype(np.int32)
            cut = cuts(surveyed.selected, magnitudes, block)
            bounds = Bounds(threshold.reshape(-1, len(weights)), cut.reshape(-1, len(weights)))
        if self.drop:
            density = per_model(step, "density").astype(np.float32)
            drawn = drawn_of(self.seed, step, block.start, density[:, None])
            if step.parameters["rescale"] and not self.mergekit_semantics:
                factors = np.divide(factors, density, out=np.zeros_like(factors), where=density > 0)
        return Given(factors[:, None], *fused(weights, step, self.elect), bounds, drawn)


def per_model(step: Step, name: str) -> Float[np.ndarray, " models"]:
    """A parameter of each source."""
    return np.broadcast_to(np.asarray(step.parameters[name], np.float64), len(step.sources))


def number(step: Step, name: str) -> float:
    """A parameter that the models share."""
    return float(step.parameters[name])  # type: ignore[arg-type]


def fused(
    weights: Float[np.ndarray, " models"], step: Step, elect: bool
) -> tuple[Float[np.ndarray, " models"] | None, np.float32]:
    """`shares` and `scale` of `Given`: with `normalize` the sum is divided by the sum of the weights, of those that agree."""
    scale = np.float32(number(step, "lambda"))
    if not step.parameters["normalize"]:
        return None, scale
    if elect:
        return weights, scale
    whole = np.float32(weights.sum())
    return None, scale if abs(whole) < 1e-8 else scale / whole


def drawn_of(seed: int, step: Step, start: int, density: Float[np.ndarray, "models entries_or_1"]) -> Drawn:
    """What is drawn for the entries of a block that begins at `start`."""
    size = step.entry.size
    places = np.stack([place_of(k * size + start) for k in range(len(density))])
    return Drawn(key_of(seed, step.name), places, density)


def _kept(block: Padded, given: Given) -> list[Bool[Array, " entries"]] | None:
    """Masks of the models; None if everything is kept."""
    size = block.models[0].shape[0]
    if given.bounds is not None:
        keys = magnitudes(block)
        first, *second = (
            [selected_of(*of) for of in zip(keys, *bound, strict=True)] for bound in zip(*given.bounds, strict=True)
        )
        return [a & ~b for a, b in zip(first, *second, strict=True)] if second else first
    if given.drawn is not None:
        key, places, density = given.drawn
        return [uniform(key, place, size) < p for place, p in zip(places, density, strict=True)]
    return None


def _terms(block: Padded, given: Given) -> list[Float[Array, " entries"]]:
    """Task vectors times their factors, zero where dropped."""
    found = vectors(block)
    terms = [x * factor.astype(x.dtype) for x, factor in zip(found, given.factors, strict=True)]
    if (kept := _kept(block, given)) is None:
        # zero is what is there: behind the choice XLA does not fuse the product with a sum, which would round a vote that is a
        # tie to a sign
        kept = [x != 0 for x in found]
    return [jnp.where(mask, term, 0) for mask, term in zip(kept, terms, strict=True)]


@partial(jax.jit, static_argnames=("elect", "dtype"))
def merged(block: Padded, given: Given, elect: bool, dtype: str) -> Rounded:
    """The base and what is added to it."""
    terms = _terms(block, given)
    if elect:
        plus = summed(terms) >= 0
        # of NaN neither holds, so that its vote is minus and it agrees: it must not pass for zero
        agree = [jnp.where(plus, x > 0, ~(x >= 0)) for x in terms]
        added = summed(jnp.where(mask, x, 0) for mask, x in zip(agree, terms, strict=True))
        if given.shares is not None:
            whole = summed(jnp.where(mask, share, 0) for mask, share in zip(agree, given.shares, strict=True))
            some = jnp.abs(whole) > 1e-6 * jnp.abs(given.shares).sum()  # of both signs, which may cancel up to rounding
            added = ratio(added, jnp.where(some, whole, 0).astype(added.dtype))
    else:
        added = summed(terms)
    return rounded(moved(block, given.scale.astype(added.dtype) * added), dtype)


def sums_of(block: Block, given: Given) -> Float[np.ndarray, "2 models"]:
    """Sums of magnitudes before and after entries are dropped."""
    with jax.enable_x64(True):
        return np.asarray(_sums(padded(block), given)).reshape(2, -1)


@jax.jit
def _sums(block: Padded, given: Given) -> Float[Array, " all"]:
    found = vectors(block)
    kept = _kept(block, given) or [jnp.ones_like(x, bool) for x in found]
    after = [jnp.where(mask, x, 0) for mask, x in zip(kept, found, strict=True)]
    return sums([jnp.abs(x).astype(jnp.float64) for x in (*found, *after)])
