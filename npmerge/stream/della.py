"""The kernel of DELLA, which drops entries by the rank of their magnitude in a row and so sees whole rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int32

from npmerge.methods.della import DropByRank
from npmerge.recipe.plan import Step
from npmerge.stream.arrays import filled, joined, padded, padded_length, precise, told
from npmerge.stream.blocks import BLOCK, Block, Merged, Tensor
from npmerge.stream.selection_in_blocks import magnitudes, rows_of
from npmerge.stream.task_vectors import Drawn, Given, drawn_of, fused, merged, per_model, sums_of


@dataclass(frozen=True)
class Della:
    """`npmerge.methods.Della`: as `TaskVectors`, each entry kept with a probability of its own.

    Attributes:
        elect: only entries whose sign is that of the sum over the models.
        mergekit_semantics: what is dropped is made up for by the sum of magnitudes, not by 1 / probability.
        seed: of what is drawn.
    """

    elect: bool = False
    mergekit_semantics: bool = False
    seed: int = 0
    in_blocks = False

    def survey(self, tensor: Tensor) -> None:
        """Nothing. Raises ValueError for probabilities that leave (0, 1]."""
        for density, epsilon in zip(*(per_model(tensor.step, name) for name in ("density", "epsilon")), strict=True):
            if density > 0:
                DropByRank(float(density), float(epsilon))

    def merge(self, block: Block, surveyed: None, step: Step) -> Merged:
        """See `Kernel`."""
        rescale = np.ones(len(block.models), np.float32)
        if self.mergekit_semantics and step.parameters["rescale"]:
            before, after = np.stack([sums_of(part, self._given(part, rescale, step)) for part in _rows(block, step)]).sum(0)
            rescale = np.divide(before, after, out=np.ones_like(before), where=after > 0).astype(np.float32)
        return joined([self._merged(part, rescale, step) for part in _rows(block, step)])

    def _merged(self, part: Block, rescale: Float[np.ndarray, " models"], step: Step) -> Merged:
        with precise(part):
            found = merged(padded(part), self._given(part, rescale, step), self.elect, step.dtype)
            return told(found, len(part.models[0]), step.dtype)

    def _given(self, part: Block, rescale: Float[np.ndarray, " models"], step: Step) -> Given:
        weights = per_model(step, "weight").astype(np.float32)
        p = probabilities(np.stack(rows_of(magnitudes, part)), step)
        factors = np.broadcast_to((weights * rescale)[:, None], p.shape)
        if step.parameters["rescale"] and not self.mergekit_semantics:
            factors = np.divide(factors, p, out=np.zeros_like(p), where=p > 0)
        length = padded_length(p.shape[1])
        drawn: Drawn = drawn_of(self.seed, step, part.start, filled(p, length))
        return Given(filled(factors, length), *fused(weights, step, self.elect), None, drawn)


def probabilities(keys: Int32[np.ndarray, "models entries"], step: Step) -> Float[np.ndarray, "models entries"]:
    """With which the entries of whole rows are kept, in float32: density - epsilon + 2 epsilon r for the rank r, 0 to 1."""
    density, epsilon = (per_model(step, name)[:, None, None] for name in ("density", "epsilon"))
    ranks = _ranks(keys.reshape(len(keys), -1, columns_of(step)))
    last = ranks.shape[-1] - 1
    spread = 2 * ranks / np.float32(last) - 1 if last else 0 * ranks
    reach = np.where((density > 0) & (density < 1), epsilon, 0)
    return (density.astype(np.float32) + reach.astype(np.float32) * spread).reshape(keys.shape)


def _ranks(keys: Int32[np.ndarray, "models rows columns"]) -> Float[np.ndarray, "models rows columns"]:
    """From 0, equal ones by index; by sorting keys and indices as one integer, several times as fast as numpy's argsort."""
    index = np.arange(keys.shape[-1], dtype=np.uint64)
    both = (keys.astype(np.uint64) << np.uint64(32)) | index
    both.sort(axis=-1)
    ranks = np.empty(keys.shape, np.float32)
    np.put_along_axis(ranks, (both & np.uint64(2**32 - 1)).astype(np.int64), index.astype(np.float32)[None, None], -1)
    return ranks


def columns_of(step: Step) -> int:
    """Entries of a row, which is what enters one output unit; a vector is one row."""
    return int(np.prod(step.shape[1:] if len(step.shape) > 1 else step.shape, dtype=np.int64))


def _rows(block: Block, step: Step) -> Iterator[Block]:
    """Runs of whole rows of about the length of a block."""
    columns = max(columns_of(step), 1)
    length = max(BLOCK // columns, 1) * columns
    for start in range(0, max(len(block.models[0]), 1), length):
        part = slice(start, start + length)
        base = None if block.base is None else block.base[part]
        yield Block(tuple(x[part] for x in block.models), base, start)
