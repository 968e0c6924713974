"""The kernel of SCE: select, calculate, erase."""

import itertools
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from npmerge.arithmetic import ratio, summed
from npmerge.recipe.plan import Step
from npmerge.stream.arrays import Padded, Rounded, Values, moved, padded, precise, rounded, sums, told, vectors
from npmerge.stream.blocks import Block, Merged, Tensor
from npmerge.stream.selection_in_blocks import Selected, bits_of, counts_of, cuts, select, selected_of
from npmerge.stream.task_vectors import number
from npmerge.task_vectors.selection import kept_of

FLOOR = 1e-6
"""Under sums of squares and of weights, in mergekit."""


class Surveyed(NamedTuple):
    """Which parameters are selected, None for all, and the models' shares of the sum of squares of these."""

    selected: Selected | None
    shares: Float[np.ndarray, " models"]


class Given(NamedTuple):
    """The numbers of one block: bounds of what is selected, if not all is, and the shares."""

    bounds: tuple[Int32[Values, ""], Int32[Values, ""]] | None
    shares: Float[Values, " models"]
    floor: Float[Values, ""]


@dataclass(frozen=True)
class Sce:
    """`npmerge.methods.Sce`.

    Attributes:
        mergekit_semantics: a share of the parameters of nonzero variance is selected, their number rounded down; floors under
            sums of squares and of weights.
    """

    mergekit_semantics: bool = False
    in_blocks = True

    def survey(self, tensor: Tensor) -> Surveyed:
        """The threshold of the variance, and the shares."""
        models, share = len(tensor.step.sources), number(tensor.step, "select_topk")
        selected = select(tensor, variances, self._wanted(tensor, share)) if share < 1 and tensor.size else None
        found = Surveyed(selected, np.ones(models))
        parts = tensor.each(lambda block: _squares_of(block, self._given(block, found)))
        squares = np.stack(parts).sum(0) if parts else np.zeros(models)
        whole = squares.sum()
        few = whole / max(tensor.size, 1) < FLOOR if self.mergekit_semantics else whole == 0
        return found._replace(shares=np.full(models, 1 / models) if few else squares / whole)

    def merge(self, block: Block, surveyed: Surveyed, step: Step) -> Merged:
        """See `Kernel`."""
        with precise(block):
            found = _merged(padded(block), self._given(block, surveyed), step.dtype)
            return told(found, len(block.models[0]), step.dtype)

    def _wanted(self, tensor: Tensor, share: float) -> np.ndarray:
        if not self.mergekit_semantics:
            return np.array([[kept_of(share, tensor.size)]])
        nonzero = sum(int(x.item()) for x in tensor.each(lambda block: counts_of(variances, block, np.ones((1, 1), np.int32))))
        return np.array([[int(nonzero * share)]])

    def _given(self, block: Block, surveyed: Surveyed) -> Given:
        bounds = None
        if surveyed.selected is not None:
            (cut,) = cuts(surveyed.selected, variances, block)
            bounds = np.int32(surveyed.selected.threshold[0]), cut
        floor = FLOOR if self.mergekit_semantics else 0.0
        return Given(bounds, surveyed.shares.astype(np.float32), np.float32(floor))


def variances(block: Padded) -> list[Int32[Array, " entries"]]:
    """The variance over the models, times a constant, as a key that has the same bits in every program.

    Squares are rounded by one bit more, or some programs would add them without rounding, and others would not.
    """
    found = vectors(block)
    squares = [jnp.square(x - y) for x, y in itertools.combinations(found, 2)]
    bits = jnp.finfo(found[0].dtype)
    terms = [jax.lax.reduce_precision(x, bits.nexp, bits.nmant - 1) for x in squares]
    return [bits_of(summed([jnp.zeros_like(found[0]), *terms]))]


def _selected(block: Padded, given: Given) -> list[Float[Array, " entries"]]:
    """Task vectors, zero where not selected."""
    found = vectors(block)
    if given.bounds is None:
        return [jnp.where(x != 0, x, 0) for x in found]
    mask = selected_of(variances(block)[0], *given.bounds)
    return [jnp.where(mask, x, 0) for x in found]


def _squares_of(block: Block, given: Given) -> Float[np.ndarray, " models"]:
    with jax.enable_x64(True):
        return np.asarray(_squares(padded(block), given))


@jax.jit
def _squares(block: Padded, given: Given) -> Float[Array, " models"]:
    return sums([jnp.square(x.astype(jnp.float64)) for x in _selected(block, given)])


@partial(jax.jit, static_argnames="dtype")
def _merged(block: Padded, given: Given, dtype: str) -> Rounded:
    found = _selected(block, given)
    plus = summed(found) >= 0
    # NaN votes for minus and agrees: it must not pass for zero
    agree = [jnp.where(plus, x > 0, ~(x >= 0)) for x in found]
    shares = [share.astype(found[0].dtype) for share in given.shares]
    added = summed(jnp.where(mask, share * x, 0) for mask, share, x in zip(agree, shares, found, strict=True))
    whole = summed(jnp.where(mask, share, 0) for mask, share in zip(agree, shares, strict=True))
    return rounded(moved(block, ratio(added, jnp.maximum(whole, given.floor.astype(whole.dtype)))), dtype)
