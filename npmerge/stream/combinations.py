"""Kernels of the methods that are linear combinations of the models: coefficients first, then one fused sum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from npmerge.arithmetic import summed
from npmerge.linear import LinearMerge
from npmerge.recipe.plan import Step
from npmerge.stack import Stack
from npmerge.stream.arrays import Padded, Rounded, moved, padded, precise, rounded, sums, told, vectors
from npmerge.stream.blocks import Block, Merged, Tensor

Numbers = Float[np.ndarray, " models"]

SMALL, LARGE = 1e-20, 1e30
"""Between these, sums of squares are those of float32: an entry whose square is below its range weighs nothing in them."""


@dataclass(frozen=True)
class Constant:
    """sum_m c_m params_m, or base + sum_m c_m (params_m - base).

    Attributes:
        coefficients: one per model.
    """

    coefficients: Sequence[float] | Numbers
    in_blocks = True

    def survey(self, tensor: Tensor) -> None:
        """Nothing."""

    def merge(self, block: Block, surveyed: None, step: Step) -> Merged:
        """See `Kernel`."""
        return combined(block, np.asarray(self.coefficients), step)


@dataclass(frozen=True)
class FromGram:
    """The same with coefficients that depend on norms and angles.

    They are those of `method` for a tensor of a few entries that has the same Gram matrix: nothing else of it matters.

    Attributes:
        method: of `npmerge.methods`. Where there is a base, task vectors are combined.
        if_opposite: the coefficients where two models are opposite, for which methods are undefined.
    """

    method: LinearMerge
    if_opposite: tuple[float, ...] | None = None
    in_blocks = True

    def survey(self, tensor: Tensor) -> Numbers:
        """The coefficients. Raises ValueError where the method is undefined, and for NaN or infinities."""
        step, name = tensor.step, type(self.method).__name__
        gram = gram_of(tensor)
        if not np.isfinite(gram).all():
            raise ValueError(f"{name} is undefined for {step.name!r}, which has NaN or infinities in a model")
        if self.if_opposite is not None and _opposite(gram):
            return np.asarray(self.if_opposite)
        small = _with_gram(gram, tensor.size)
        found = self.method.init(Stack({step.name: small}, {step.name: np.zeros_like(small[0])}))
        return np.asarray(found[step.name], np.float64).reshape(-1)

    def merge(self, block: Block, surveyed: Numbers, step: Step) -> Merged:
        """See `Kernel`."""
        return combined(block, surveyed, step)


def combined(block: Block, coefficients: Numbers, step: Step) -> Merged:
    """The sum of the models, or of their task vectors if there is a base, with these coefficients."""
    with precise(block):
        found = _combined(padded(block), coefficients.astype(np.float32), step.dtype)
        return told(found, len(block.models[0]), step.dtype)


def gram_of(tensor: Tensor) -> Float[np.ndarray, "models models"]:
    """Inner products of the models, or of the task vectors, added up in the order of the blocks, short runs in float32.

    Tensors whose squares may not be numbers of float32 are read once more, to multiply in float64.
    """
    gram = _gram(tensor, _products_of)
    squares = gram.diagonal()
    return gram if ((squares > SMALL) & (squares < LARGE)).all() else _gram(tensor, _wide_products_of)


def _gram(tensor: Tensor, products: Callable[[Block], Float[np.ndarray, " pairs"]]) -> Float[np.ndarray, "models models"]:
    models = len(tensor.step.sources)
    upper = np.triu_indices(models)
    gram = np.zeros((models, models))
    gram[upper] = np.sum(tensor.each(products), 0)
    return np.where(np.tri(models, k=-1, dtype=bool), gram.T, gram)


def _products_of(block: Block) -> Float[np.ndarray, " pairs"]:
    with jax.enable_x64(True):
        return np.asarray(_products(padded(block)))


def _wide_products_of(block: Block) -> Float[np.ndarray, " pairs"]:
    with jax.enable_x64(True):
        return np.asarray(_products(padded(block), wide=True))


@partial(jax.jit, static_argnames="wide")
def _products(block: Padded, wide: bool = False) -> Float[Array, " pairs"]:
    found = [x.astype(jnp.float64) if wide else x for x in vectors(block)]
    return sums([x * y for k, x in enumerate(found) for y in found[k:]])


def _with_gram(gram: Float[np.ndarray, "models models"], size: int) -> Float[np.ndarray, "models entries"]:
    """Vectors of as few entries as may have this Gram matrix, given that those of `size` entries have."""
    values, axes = np.linalg.eigh(gram)
    roots = axes * np.sqrt(np.maximum(values, 0))
    return roots[:, ::-1][:, : max(size, 1)]


def _opposite(gram: Float[np.ndarray, "2 2"]) -> bool:
    """Whether two models are, up to rounding."""
    return bool(gram[0, 1] < (1e-6 - 1) * np.sqrt(gram[0, 0] * gram[1, 1]))


@partial(jax.jit, static_argnames="dtype")
def _combined(block: Padded, coefficients: Float[Array, " models"], dtype: str) -> Rounded:
    found = vectors(block)
    added = summed(c.astype(x.dtype) * x for c, x in zip(coefficients, found, strict=True))
    return rounded(moved(block, added), dtype)
